"""What usage costs, and what the documentation says about setting limits."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from host.runs.meter import FREE, Prices
from shared.settings import load
from shared.settings.sections import Budgets, Price
from shared.usage_values import Usage

DOCUMENT = Path(__file__).parents[2] / "docs" / "budgets.md"
SMALL = Price(input=1.0, output=5.0, cache_read=0.1, cache_write=1.25)
BIG = Price(input=15.0, output=75.0)
PRICES = Prices(Budgets(prices={"claude-small": SMALL, "claude-small-2": BIG}))


def test_every_kind_of_token_has_its_price() -> None:
    assert PRICES.cost(Usage(1000, 100, 10, 200), "claude-small") == 1000 + 500 + 13 + 20


def test_cached_input_costs_what_other_input_does_unless_its_price_is_given() -> None:
    assert PRICES.cost(Usage(1, 0, 10, 100), "claude-small-2") == 15 * 111
    free = Price(input=15.0, output=75.0, cache_read=0.0, cache_write=0.0)
    assert Prices(Budgets(prices={"gift": free})).cost(Usage(1, 0, 10, 100), "gift") == 15


def test_a_fraction_of_a_millionth_counts_as_a_whole_one() -> None:
    assert PRICES.cost(Usage(cache_read_input_tokens=1), "claude-small") == 1


@pytest.mark.parametrize(
    ("model", "price"),
    [
        ("claude-small", SMALL),
        ("claude-small-20260101", SMALL),
        ("claude-small-2-20260101", BIG),
        ("claude-small-2026-01-01", SMALL),
        ("claude-small@20260101", SMALL),
        ("claude-small-20260101-v1:0", SMALL),
        ("claude-small-latest", SMALL),
        ("claude-small-3", None),
        ("claude-small-pro", None),
        ("claude-smaller", None),
        ("other", None),
    ],
)
def test_a_price_holds_for_the_dated_ids_of_its_model(model: str, price: Price | None) -> None:
    assert PRICES.of(model) == price


def test_the_first_name_with_a_price_counts() -> None:
    assert PRICES.cost(Usage(1), "what the API calls it", "claude-small") == 1
    assert PRICES.cost(Usage(1), "neither", "nor") == 0


def test_what_is_reserved_covers_the_dearest_of_the_models() -> None:
    dearest = PRICES.dearest(["claude-small", "claude-small-2"])
    assert dearest is not None
    assert (dearest.input, dearest.output) == (15.0, 75.0)
    alone = PRICES.dearest(["claude-small"])
    assert alone is not None
    assert alone.input == 1.25
    assert PRICES.dearest(["claude-small", "other"]) is None


def test_the_offline_model_is_free() -> None:
    assert Prices(Budgets(), free=True).of("anything") == FREE


def test_the_example_of_the_documentation_is_loaded_without_a_warning(tmp_path: Path) -> None:
    (example,) = re.findall(r"^```json\n(.*?)^```$", DOCUMENT.read_text(), re.M | re.S)
    (tmp_path / "config.json").write_text(example)
    settings = load({"HOME": str(tmp_path), "PICOCLAW_HOME": str(tmp_path)})
    assert settings.budgets.limited
    assert settings.warnings == ()

"""A walk over the reference of settings: a wrong value is refused with its name, and the docs have each."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from shared.settings import SettingsError, load
from shared.settings.leaves import Leaf, leaves

ROOT = Path(__file__).parents[2]


def wrong(leaf: Leaf) -> str | None:
    """A value that can't be meant; None where every text means something."""
    if leaf.is_json:
        return "[{"
    if leaf.kind in (bool, int, float):
        return "no such value"
    literal = get_args(leaf.kind)
    if literal and all(isinstance(item, str) for item in literal):
        return "no such value"
    pattern = str(leaf.field.metadata)
    return "ftp:// nowhere" if "http" in pattern or leaf.key in ("timezone", "database_url") else None


WRONG = [(leaf, name, said) for leaf in leaves() for name in leaf.env if (said := wrong(leaf)) is not None]


@pytest.mark.parametrize(("leaf", "name", "value"), WRONG, ids=[name for _, name, _ in WRONG])
def test_a_wrong_value_is_refused_with_its_name(tmp_path: Path, leaf: Leaf, name: str, value: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load({"HOME": str(tmp_path), "PICOCLAW_HOME": str(tmp_path), name: value})
    assert any(fault.startswith(f"{name} (environment)") for fault in caught.value.faults)
    assert value not in str(caught.value)


@pytest.mark.parametrize("leaf", leaves(), ids=lambda leaf: leaf.key)
def test_the_docs_name_every_setting_by_each_of_its_names(leaf: Leaf) -> None:
    document = (ROOT / "docs/configuration.md").read_text()
    for name in (*leaf.env, *([leaf.key] if leaf.in_config else ())):
        assert f"`{name}`" in document

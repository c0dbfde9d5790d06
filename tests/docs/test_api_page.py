from __future__ import annotations

from pathlib import Path

import yaml

from tests.docs.api_page import MEANINGS, ROOT, page
from tests.running import running_host


def test_the_page_of_every_route_is_what_a_host_says_and_answers(tmp_path: Path) -> None:
    with running_host(tmp_path / "host", None) as host:
        made = page(host)
    assert made == (ROOT / "docs/api.md").read_text(), "run python -m tests.docs.api_page docs/api.md"


def test_no_meaning_is_written_twice_or_for_a_field_that_is_not_there() -> None:
    text = (ROOT / "docs/site/fields.yml").read_text()
    names = [line.partition(": ")[0] for line in text.splitlines() if line and not line.startswith("#")]
    assert sorted(names) == sorted(set(names)) == sorted(yaml.safe_load(text))
    shown = (ROOT / "docs/api.md").read_text()
    assert [name for name in MEANINGS if f"`{name.rpartition('.')[2]}` |" not in shown] == []

"""The manual's figures and examples are the program's."""

from __future__ import annotations

import re
from pathlib import Path

from shared.schedules import MACROS, MOST_CAUGHT_UP, ON_TIME_MS, SHORTEST_INTERVAL_MS, parse
from shared.store.sql.task_rows import BACKOFF_MS, TRIES

MANUAL = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text(encoding="utf-8")


def test_every_example_of_a_schedule_is_one() -> None:
    rows = re.findall(r"^\| `(cron|interval|once)` \|.*\| `([^`]+)` \|$", MANUAL, re.MULTILINE)

    assert [parse(kind, value, "UTC").type for kind, value in rows] == ["cron", "interval", "once"]
    assert parse("cron", "0 9 * * MON#1", "UTC").value == "0 9 * * MON#1"


def test_the_manual_names_the_programs_figures() -> None:
    first, second = (wait // 60_000 for wait in BACKOFF_MS)

    assert " ".join(MACROS) in MANUAL
    assert f"from {SHORTEST_INTERVAL_MS} |" in MANUAL
    assert f"after {first} and {second} minutes" in MANUAL
    assert f"at most {TRIES} hosts" in MANUAL
    assert (ON_TIME_MS, MOST_CAUGHT_UP) == (2 * 60_000, 100)
    assert "two minutes late" in MANUAL
    assert "after a hundred in a row" in MANUAL

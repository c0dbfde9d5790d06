"""The shortest and the longest interval are intervals; one millisecond beyond is none."""

from __future__ import annotations

import pytest

from shared.errors import InvalidInput
from shared.schedules import LONGEST_INTERVAL_MS, SHORTEST_INTERVAL_MS, first_slot, parse


@pytest.mark.parametrize("step", [SHORTEST_INTERVAL_MS, LONGEST_INTERVAL_MS])
def test_an_interval_at_its_bound_is_one(step: int) -> None:
    assert first_slot(parse("interval", str(step), "UTC"), 1000) == 1000 + step


@pytest.mark.parametrize("step", [SHORTEST_INTERVAL_MS - 1, LONGEST_INTERVAL_MS + 1])
def test_an_interval_beyond_its_bound_is_refused(step: int) -> None:
    with pytest.raises(InvalidInput, match="schedule_value: an interval is at"):
        parse("interval", str(step), "UTC")

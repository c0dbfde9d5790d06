"""A second opinion on slots: every minute of real time is looked at, with nothing but zoneinfo.

Deliberately naive and built the other way round than the code under test: from instants to wall clocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

MINUTE = timedelta(minutes=1)

Matches = Callable[[datetime], bool]
"""Says whether a wall-clock minute is named by the schedule."""


def minutes(start: datetime, end: datetime, zone: ZoneInfo) -> Iterator[tuple[datetime, list[datetime]]]:
    """Yield every minute of real time, with the wall-clock minutes that came for the first time with it.

    Normally one; none in a fold's second pass; at a gap's end all the skipped ones and the present one.
    """
    newest = _wall(start - MINUTE, zone)
    # A fold may lie just behind the start: what was on the clock before it counts as seen.
    newest = max(newest, *(_wall(start - MINUTE * back, zone) for back in range(1, 181)))
    moment = start
    while moment < end:
        wall = _wall(moment, zone)
        fresh = []
        while newest < wall:
            newest += MINUTE
            fresh.append(newest)
        yield moment, fresh
        moment += MINUTE


def slots(matches: Matches, start: datetime, end: datetime, zone: ZoneInfo) -> list[datetime]:
    """Return the instants after ``start`` and before ``end`` at which a named wall-clock minute comes."""
    found = []
    for moment, fresh in minutes(start, end, zone):
        if moment > start and any(matches(wall) for wall in fresh):
            found.append(moment)
    return found


def _wall(moment: datetime, zone: ZoneInfo) -> datetime:
    return moment.astimezone(UTC).astimezone(zone).replace(tzinfo=None)

"""The one clock. Instants are whole milliseconds since the Unix epoch, UTC; texts are ISO-8601 with ``Z``."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Final
from zoneinfo import ZoneInfo

DAY_MS: Final = 24 * 3600 * 1000


def now_ms() -> int:
    """Return the wall clock in milliseconds since the epoch (UTC)."""
    return time.time_ns() // 1_000_000


def monotonic_ms() -> float:
    """Return a clock for durations, in milliseconds; it never goes back."""
    return time.monotonic_ns() / 1_000_000


def iso(ms: int) -> str:
    """Return ``2026-01-31T09:30:00.000Z`` for an instant in milliseconds."""
    seconds, millis = divmod(ms, 1000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{millis:03d}Z"


def at(ms: int) -> datetime:
    """Return the instant as an aware UTC datetime."""
    return datetime.fromtimestamp(ms / 1000, UTC)


def local(ms: int, timezone: str) -> str:
    """Return an instant as people of the zone read it: ``Mon 2027-03-01T09:00:00+01:00 Europe/Berlin``.

    Raises ZoneInfoNotFoundError for a zone that the machine doesn't know.
    """
    wall = datetime.fromtimestamp(ms // 1000, ZoneInfo(timezone))
    return f"{wall:%a} {wall.isoformat()} {timezone}"


def ms_of(moment: datetime) -> int:
    """Return milliseconds since the epoch of an aware datetime."""
    return round(moment.timestamp() * 1000)

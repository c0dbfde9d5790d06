"""The one clock, and the zones that people live in.

Instants are whole milliseconds since the Unix epoch, UTC; texts are ISO-8601 with ``Z``.
"""

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
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


def ms_of_http_date(text: str) -> int | None:
    """Return the instant of a date as HTTP's headers have it, None if it is none.

    One without a zone, as in one of HTTP's older forms, is in UTC (RFC 9110, section 5.6.7).
    """
    from email.utils import parsedate_to_datetime  # for who reads such headers alone

    try:
        moment = parsedate_to_datetime(text)
        return ms_of(moment.replace(tzinfo=moment.tzinfo or UTC))
    except (ValueError, OverflowError, TypeError):
        return None


ETC: Final = Path("/etc")
FOLDER: Final = "zoneinfo/"
"""What stands before the name in the path of a zone's file."""


@cache
def zone_names() -> frozenset[str]:
    """Return IANA's names: the system's folder also holds ``localtime`` and zones that count leap seconds."""
    import importlib.resources  # takes 10 ms, for a name that is wrong or new

    names = importlib.resources.files("tzdata").joinpath("zones").read_text(encoding="ascii")
    return frozenset(names.split())


def checked_zone(name: str) -> str:
    """Return the name of an IANA time zone that schedules take; raises ``ValueError`` with a sentence.

    As in POSIX's TZ, a leading colon is dropped, and a path may stand for the zone that lies there.
    """
    if name == "UTC":
        return name
    bare = name.removeprefix(":")
    if bare == str(ETC / "localtime"):
        return machine_zone()
    bare = bare.partition(FOLDER)[2] if bare.startswith("/") else bare
    if bare not in zone_names():
        raise ValueError("must be the name of a time zone, such as Europe/Berlin or UTC")
    return bare


def machine_zone(etc: Path = ETC) -> str:
    """Return the name of this machine's zone (localtime(5), Debian's /etc/timezone), UTC where none is."""
    for name in _names(etc):
        if name.removeprefix("Etc/") in ("UTC", "UCT", "Universal", "Zulu"):
            return "UTC"
        with suppress(ValueError):
            return checked_zone(name)
    return "UTC"


def _names(etc: Path) -> Iterator[str]:
    with suppress(OSError):
        linked = os.path.realpath(etc / "localtime").partition(FOLDER)[2]
        yield linked.removeprefix("posix/").removeprefix("right/")
    with suppress(OSError, UnicodeDecodeError):
        yield (etc / "timezone").read_text().strip()

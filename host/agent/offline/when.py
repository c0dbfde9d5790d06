"""When something shall happen, in plain words: "every day at 9", "in 10 minutes", "tomorrow at 8:30"."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Literal

Kind = Literal["cron", "interval", "once"]


@dataclass(frozen=True, slots=True)
class When:
    """A schedule as ``schedule_task`` takes it; ``timezone`` None is the host's.

    ``value`` is five cron fields, whole milliseconds, or local time without a zone.
    """

    kind: Kind
    value: str
    timezone: str | None = None


class NoClock(Exception):
    """The words count from now, and now is not known."""


_SECONDS: Final = {"second": 1, "minute": 60, "hour": 3600, "day": 86400, "week": 604800}
_DAYS: Final = {
    "monday": "MON",
    "tuesday": "TUE",
    "wednesday": "WED",
    "thursday": "THU",
    "friday": "FRI",
    "saturday": "SAT",
    "sunday": "SUN",
    "weekday": "MON-FRI",
    "weekend": "SAT,SUN",
    "morning": "*",
    "day": "*",
}
_MORNING: Final = (9, 0)
_MAX_AHEAD: Final = timedelta(days=3660)

_UNIT: Final = r"(?P<unit>second|minute|hour|day|week)s?\b"
_CLOCK: Final = r"(?P<hour>\d{1,2})(?::(?P<minute>\d{2}))?(?:\s?(?P<half>am|pm)\b|\s?o'clock\b)?(?!\w|:\d)"
_AT: Final = rf"(?:at\s+)?(?:{_CLOCK}|(?P<noon>noon)\b|(?P<midnight>midnight)\b)"
_FORMS: Final = (
    (rf"(?:every|each)\s+(?P<day>{'|'.join(_DAYS)})s?\b(?:\s+{_AT})?", "weekly"),
    (rf"daily\b(?:\s+{_AT})?", "weekly"),
    (rf"(?:every|each)\s+(?:(?P<count>\d{{1,9}})\s+)?{_UNIT}", "interval"),
    (rf"in\s+(?P<count>\d{{1,9}}|an?|half\s+an)\s+{_UNIT}", "ahead"),
    (rf"tomorrow\b(?:\s+{_AT})?", "tomorrow"),
    (
        rf"at\s+(?:{_CLOCK}|(?P<noon>noon)\b|(?P<midnight>midnight)\b)(?:\s+(?P<tomorrow>tomorrow)\b|\s+today\b)?",
        "at",
    ),
)
_UNREAD: Final = re.compile(r"at\s+\d", re.IGNORECASE)
_PATTERNS: Final = tuple((re.compile(form, re.IGNORECASE), name) for form, name in _FORMS)
_AT_END: Final = tuple((re.compile(rf"\s{form}[.!]?\Z", re.IGNORECASE), name) for form, name in _FORMS)


@dataclass(frozen=True, slots=True)
class Found:
    """A phrase of time in a text: the rest of the text, how to read it, and whether it came last."""

    rest: str
    match: re.Match[str]
    form: str
    last: bool = False

    def when(self, now: datetime | None) -> When | None:
        """Return the schedule, None for a time that no clock shows. Raises ``NoClock``."""
        if not self.last and _UNREAD.match(self.rest):
            return None
        return _READERS[self.form](self.match, now)


def at_start(text: str) -> Found | None:
    """Find a phrase that the text begins with."""
    for pattern, form in _PATTERNS:
        match = pattern.match(text)
        if match:
            return Found(text[match.end() :].lstrip(" ,:"), match, form)
    return None


def at_end(text: str) -> Found | None:
    """Find a phrase that the text ends with."""
    for pattern, form in _AT_END:
        match = pattern.search(text)
        if match:
            return Found(text[: match.start()].rstrip(" ,"), match, form, last=True)
    return None


def _weekly(match: re.Match[str], now: datetime | None) -> When | None:
    clock = _clock(match)
    day = _DAYS[(match.groupdict().get("day") or "day").lower()]
    return None if clock is None else When("cron", f"{clock[1]} {clock[0]} * * {day}")


def _interval(match: re.Match[str], now: datetime | None) -> When | None:
    millis = int(match["count"] or 1) * _SECONDS[match["unit"].lower()] * 1000
    return When("interval", str(millis)) if millis else None


def _ahead(match: re.Match[str], now: datetime | None) -> When | None:
    count, unit = match["count"].lower(), _SECONDS[match["unit"].lower()]
    seconds = int(count) * unit if count.isdecimal() else unit // (2 if count.startswith("half") else 1)
    if seconds > _MAX_AHEAD.total_seconds():
        return None
    return _once(_known(now) + timedelta(seconds=seconds), "UTC")


def _tomorrow(match: re.Match[str], now: datetime | None) -> When | None:
    clock = _clock(match)
    return None if clock is None else _once(_moment(_known(now) + timedelta(days=1), clock))


def _at(match: re.Match[str], now: datetime | None) -> When | None:
    clock = _clock(match)
    if clock is None:
        return None
    moment = _moment(_known(now), clock)
    if match["tomorrow"] or moment <= _known(now):
        moment += timedelta(days=1)
    return _once(moment)


_READERS: Final[dict[str, Callable[[re.Match[str], datetime | None], When | None]]] = {
    "weekly": _weekly,
    "interval": _interval,
    "ahead": _ahead,
    "tomorrow": _tomorrow,
    "at": _at,
}


def _clock(match: re.Match[str]) -> tuple[int, int] | None:
    if match["noon"] or match["midnight"]:
        return (12, 0) if match["noon"] else (0, 0)
    if match["hour"] is None:
        return _MORNING
    hour, minute, half = int(match["hour"]), int(match["minute"] or 0), (match["half"] or "").lower()
    if half:
        if not 1 <= hour <= 12:
            return None
        hour = hour % 12 + (12 if half == "pm" else 0)
    return (hour, minute) if hour < 24 and minute < 60 else None


def _known(now: datetime | None) -> datetime:
    if now is None:
        raise NoClock
    return now


def _moment(day: datetime, clock: tuple[int, int]) -> datetime:
    return day.replace(hour=clock[0], minute=clock[1], second=0, microsecond=0)


def _once(moment: datetime, timezone: str | None = None) -> When:
    return When("once", moment.strftime("%Y-%m-%dT%H:%M:%S"), timezone)

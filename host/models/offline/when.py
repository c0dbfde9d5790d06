"""When something shall happen, in plain words: "every day at 9", "every 5 minutes", "in 10 minutes"."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final


class Unclear(Exception):
    """The words sound like a time but say too little; the text is the sentence for the person."""


_SECONDS: Final = {"second": 1, "minute": 60, "hour": 3600, "day": 86400, "week": 604800}
_WEEKDAYS: Final = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_DAYS: Final = {day: day[:3].upper() for day in _WEEKDAYS} | {"weekday": "MON-FRI", "day": "*"}
_MAX_AHEAD_S: Final = 3660 * 86400

_CLOCK: Final = r"at\s+(?P<hour>\d{1,2})(?::(?P<minute>\d{2}))?(?:\s?(?P<half>am|pm)\b)?(?!\w|:\d)"
_UNIT: Final = r"(?P<unit>second|minute|hour|day|week)s?\b"
_FORMS: Final = (
    rf"(?:every|each)\s+(?P<day>{'|'.join(_DAYS)})\b(?:\s+{_CLOCK})?",
    rf"(?:every|each)\s+(?:(?P<count>\d{{1,9}})\s+)?{_UNIT}",
    rf"(?P<ahead>in)\s+(?P<count>\d{{1,9}}|an?)\s+{_UNIT}",
)
_PATTERNS: Final = (
    *(re.compile(rf"\A{form}", re.IGNORECASE) for form in _FORMS),
    *(re.compile(rf"\s{form}[.!]?\Z", re.IGNORECASE) for form in _FORMS),
)
_UNREAD: Final = re.compile(r"at\s+\d", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Found:
    """A phrase of time in a text, the rest of the text, and whether the phrase came last."""

    rest: str
    said: dict[str, str | None]
    last: bool

    def schedule(self, now: datetime | None) -> dict[str, str]:
        """Return the arguments of ``schedule_task``, counted from ``now`` (UTC). Raises ``Unclear``."""
        if not self.last and _UNREAD.match(self.rest):
            raise Unclear("I cannot read that time.")
        if day := self.said.get("day"):
            hour, minute = self._clock()
            return _arguments("cron", f"{minute} {hour} * * {_DAYS[day.lower()]}")
        count, unit = self.said["count"] or "1", str(self.said["unit"])
        seconds = (int(count) if count.isdecimal() else 1) * _SECONDS[unit.lower()]
        if not 0 < seconds <= _MAX_AHEAD_S:
            raise Unclear("I cannot read that time.")
        if "ahead" not in self.said:
            return _arguments("interval", f"{seconds * 1000}")
        if now is None:
            raise Unclear("I was not told what time it is, so I cannot count from now.")
        moment = f"{now + timedelta(seconds=seconds):%Y-%m-%dT%H:%M:%S}"
        return {**_arguments("once", moment), "timezone": "UTC"}

    def _clock(self) -> tuple[int, int]:
        """Return hour and minute; 9:00 when the words name none."""
        hour, minute = int(self.said["hour"] or 9), int(self.said["minute"] or 0)
        if half := (self.said["half"] or "").lower():
            hour = hour % 12 + (12 if half == "pm" else 0) if 1 <= hour <= 12 else 24
        if hour > 23 or minute > 59:
            raise Unclear("I cannot read that time.")
        return hour, minute


def find(text: str) -> Found | None:
    """Find a phrase of time that the text begins or ends with."""
    for pattern in _PATTERNS:
        if match := pattern.search(text):
            rest = f"{text[: match.start()]}{text[match.end() :]}".strip(" ,:")
            return Found(rest, match.groupdict(), last=match.start() > 0)
    return None


def _arguments(kind: str, value: str) -> dict[str, str]:
    return {"schedule_type": kind, "schedule_value": value}

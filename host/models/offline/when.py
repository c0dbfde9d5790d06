"""When something shall happen, in plain words: "every day at 9", "in 10 minutes", "tomorrow at 8:30"."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final


class Unclear(Exception):
    """The words sound like a time but say too little; the text is the sentence for the person."""


_SECONDS: Final = {"second": 1, "minute": 60, "hour": 3600, "day": 86400, "week": 604800}
_WEEKDAYS: Final = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_DAYS: Final = {day: day[:3].upper() for day in _WEEKDAYS} | {
    "weekday": "MON-FRI",
    "weekend": "SAT,SUN",
    "morning": "*",
    "day": "*",
}
_MAX_AHEAD_S: Final = 3660 * 86400

_CLOCK: Final = (
    r"(?:(?P<hour>\d{1,2})(?::(?P<minute>\d{2}))?(?:\s?(?P<half>am|pm)\b|\s?o'clock\b)?(?!\w|:\d)"
    r"|(?P<noon>noon)\b|(?P<midnight>midnight)\b)"
)
_UNIT: Final = r"(?P<unit>second|minute|hour|day|week)s?\b"
_FORMS: Final = {
    "weekly": rf"(?:(?:every|each)\s+(?P<day>{'|'.join(_DAYS)})s?|daily)\b(?:\s+(?:at\s+)?{_CLOCK})?",
    "interval": rf"(?:every|each)\s+(?:(?P<count>\d{{1,9}})\s+)?{_UNIT}",
    "ahead": rf"in\s+(?P<count>\d{{1,9}}|an?|half\s+an)\s+{_UNIT}",
    "tomorrow": rf"tomorrow\b(?:\s+(?:at\s+)?{_CLOCK})?",
    "at": rf"at\s+{_CLOCK}(?:\s+(?P<tomorrow>tomorrow)\b|\s+today\b)?",
}
_PATTERNS: Final = (
    *((name, re.compile(rf"\A{form}", re.IGNORECASE)) for name, form in _FORMS.items()),
    *((name, re.compile(rf"\s{form}[.!]?\Z", re.IGNORECASE)) for name, form in _FORMS.items()),
)
_UNREAD: Final = re.compile(r"at\s+\d", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Found:
    """A phrase of time in a text, the rest of the text, and whether the phrase came last."""

    rest: str
    form: str
    match: re.Match[str]
    last: bool

    def schedule(self, now: datetime | None) -> dict[str, str]:
        """Return the arguments of ``schedule_task``, counted from ``now`` (UTC). Raises ``Unclear``."""
        if not self.last and _UNREAD.match(self.rest):
            raise Unclear("I cannot read that time.")
        if self.form == "weekly":
            hour, minute = self._clock()
            day = _DAYS[(self.match["day"] or "day").lower()]
            return _arguments("cron", f"{minute} {hour} * * {day}")
        if self.form == "interval":
            return _arguments("interval", f"{self._seconds() * 1000}")
        if now is None:
            raise Unclear("I was not told what time it is, so I cannot count from now.")
        if self.form == "ahead":
            return {**_once(now + timedelta(seconds=self._seconds())), "timezone": "UTC"}
        hour, minute = self._clock()
        moment = now.replace(hour=hour, minute=minute, second=0)
        later = self.form == "tomorrow" or self.match["tomorrow"] or moment <= now
        return _once(moment + timedelta(days=1 if later else 0))

    def _seconds(self) -> int:
        count, unit = (self.match["count"] or "1").lower(), _SECONDS[self.match["unit"].lower()]
        if count.startswith("half"):
            return unit // 2
        seconds = int(count) * unit if count.isdecimal() else unit
        if not 0 < seconds <= _MAX_AHEAD_S:
            raise Unclear("I cannot read that time.")
        return seconds

    def _clock(self) -> tuple[int, int]:
        """Return hour and minute; 9:00 when the words name none."""
        if self.match["noon"] or self.match["midnight"]:
            return (12 if self.match["noon"] else 0), 0
        hour, minute = int(self.match["hour"] or 9), int(self.match["minute"] or 0)
        if half := (self.match["half"] or "").lower():
            hour = hour % 12 + (12 if half == "pm" else 0) if 1 <= hour <= 12 else 24
        if hour > 23 or minute > 59:
            raise Unclear("I cannot read that time.")
        return hour, minute


def find(text: str) -> Found | None:
    """Find a phrase of time that the text begins or ends with."""
    for form, pattern in _PATTERNS:
        if match := pattern.search(text):
            rest = f"{text[: match.start()]}{text[match.end() :]}".strip(" ,:")
            return Found(rest, form, match, last=match.start() > 0)
    return None


def _once(moment: datetime) -> dict[str, str]:
    return _arguments("once", f"{moment:%Y-%m-%dT%H:%M:%S}")


def _arguments(kind: str, value: str) -> dict[str, str]:
    return {"schedule_type": kind, "schedule_value": value}

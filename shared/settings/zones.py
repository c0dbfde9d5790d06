"""Which time zone names are real."""

from __future__ import annotations

from zoneinfo import ZoneInfo


def checked_zone(name: str) -> str:
    """Return the name of an IANA time zone; raises ``ValueError`` with a sentence for any other."""
    try:
        ZoneInfo(name)
    except (ValueError, OSError, KeyError):
        raise ValueError("must be the name of a time zone, such as Europe/Berlin or UTC") from None
    return name

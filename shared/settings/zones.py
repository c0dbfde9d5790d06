"""Which time zone names are real."""

from __future__ import annotations


def checked_zone(name: str) -> str:
    """Return the name of an IANA time zone that schedules take; raises ``ValueError`` with a sentence.

    A leading colon, which POSIX has in TZ, is dropped.
    """
    if name == "UTC":
        return name
    from shared.errors import InvalidInput
    from shared.schedules import zone

    try:
        zone(name.removeprefix(":"))
    except InvalidInput:
        raise ValueError("must be the name of a time zone, such as Europe/Berlin or UTC") from None
    return name.removeprefix(":")

"""Which time zone names are real, and which one is the machine's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

ETC: Final = Path("/etc")
FOLDER: Final = "zoneinfo/"
"""What stands before the name in the path of a zone's file."""


def checked_zone(name: str) -> str:
    """Return the name of an IANA time zone that schedules take; raises ``ValueError`` with a sentence.

    As in POSIX's TZ, a leading colon is dropped, and a path may stand for the zone that lies there.
    """
    if name == "UTC":
        return name
    from shared.errors import InvalidInput
    from shared.schedules import zone

    bare = name.removeprefix(":")
    if bare == str(ETC / "localtime"):
        return machine_zone()
    bare = bare.partition(FOLDER)[2] if bare.startswith("/") else bare
    try:
        zone(bare)
    except InvalidInput:
        raise ValueError("must be the name of a time zone, such as Europe/Berlin or UTC") from None
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

"""Reading a file that somebody else may have put there: regular, bounded, never waiting."""

from __future__ import annotations

import os
import stat
from pathlib import Path


class NotRegular(OSError):
    """It is a directory, a pipe, a device or a socket."""


class TooLong(OSError):
    """It holds more bytes than the caller takes."""


def read_regular(path: Path, most: int, *, follow: bool = True) -> bytes:
    """Return the content of a regular file of at most ``most`` bytes.

    Raises ``NotRegular``, ``TooLong``, or the ``OSError`` of opening and reading it. A pipe doesn't hang it
    (O_NONBLOCK, open(2)); with ``follow`` false a link is refused.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    descriptor = os.open(path, flags)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise NotRegular
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            content = file.read(most + 1)
    finally:
        os.close(descriptor)
    if len(content) > most:
        raise TooLong
    return content

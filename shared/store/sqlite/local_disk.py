"""The reserve that stands beside the database on the local disk, and whether there is room."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

PROBE_BYTES: Final = 65_536
"""What a turn may need on a disk."""

RESERVE_BYTES: Final = 4 << 20
"""Space beside the database for the log of a deletion."""


class Reserve:
    """Space on the local disk that is kept so that a conversation can be deleted when all else is taken."""

    def __init__(self, database: Path) -> None:
        self._path = f"{database}.reserve"
        self.keep()

    def keep(self) -> None:
        """Take it, if it can be had and isn't held."""
        with suppress(OSError):
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, RESERVE_BYTES)
            except OSError:
                os.truncate(descriptor, 0)  # part of it would only be taken from others
            finally:
                os.close(descriptor)

    def release(self) -> None:
        """Give it back."""
        with suppress(OSError):
            os.truncate(self._path, 0)


def try_disk(path: Path) -> None:
    """Write what a turn may need to a new file, and remove it; raises OSError."""
    try:
        path.write_bytes(bytes(PROBE_BYTES))
    finally:
        path.unlink(missing_ok=True)

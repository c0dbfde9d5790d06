"""What stands beside the database on the local disk: the gate, and the reserve; and whether there is room.

The gate is a file lock that a writer holds for the length of its transaction and whoever reads or resets the
write-ahead log for that moment, so that no commit can slip between "everything is shipped" and "the log
starts anew" (docs/storage.md).
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

BUSY_MS: Final = 5000
"""How long a statement on a worker thread waits for another process's transaction, in milliseconds."""

PROBE_BYTES: Final = 65_536
"""What a turn may need on a disk."""

RESERVE_BYTES: Final = 4 << 20
"""Space beside the database for the log of a deletion."""


def take(fd: int, timeout_ms: float) -> None:
    """Take the lock on an open file alone; raises TimeoutError.

    It asks again and again instead of waiting in the kernel, because a process stopped while it holds the
    lock must not stop all others for good.
    """
    pause, deadline = 0.0001, time.monotonic() + timeout_ms / 1000
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise TimeoutError("a lock is held by a process that doesn't move") from None
        time.sleep(pause)
        pause = min(pause * 1.5, 0.005)


class Gate:
    """A lock file beside the database, held for the length of one write or one look at the log."""

    def __init__(self, database: Path) -> None:
        self._fd = os.open(f"{database}.gate", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def now(self) -> bool:
        """Take it if that needs no waiting."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold it: no write transaction is open anywhere else; raises TimeoutError."""
        take(self._fd, BUSY_MS)
        try:
            yield
        finally:
            self.release()

    def release(self) -> None:
        """Give it back."""
        fcntl.flock(self._fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close the lock file."""
        os.close(self._fd)


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

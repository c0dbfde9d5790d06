"""What a conversation's temporary files take, held against what their file system has left.

The store's local database may lie on the same file system, so nobody may fill it: a conversation may hold at
most what it leaves free, less a reserve, of bytes and of inodes. Asking what is free costs a microsecond;
files are counted when that has shrunk, and in a part of the time only.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from itertools import chain
from typing import Final

from .. import proc
from ..config import HOME
from ..confine import workspaces
from . import tree

RESERVE: Final = 128 << 20  # bytes that stay free, or a sixteenth of a small file system
MOST_FILES: Final = 200_000
RESERVE_FILES: Final = 8192  # inodes that stay free, or a sixteenth
_STEP: Final = 16 << 20  # bytes by which the free space shrinks until files are counted again
_STEP_FILES: Final = 16_384
_COUNTING_SHARE: Final = 4
BLOCK: Final = 512  # st_blocks, stat(2)


class Space:
    """Watches the temporary files of one command's conversation. ``most``: bytes it may hold at best."""

    def __init__(self, temporary: str, most: int) -> None:
        self._temporary = temporary
        self._most = most
        self._count_again = 0.0
        self._begun, self._free_files, _, _ = self._left()
        # what earlier commands left counts from the start where it matters
        self._free = self._begun + (_STEP if self._begun < 2 * most else 0)

    def _left(self) -> tuple[int, int, int, int]:
        """Return free bytes and inodes, the bytes to keep, and how many files may be held."""
        status = os.statvfs(self._temporary)
        whole, files = status.f_blocks * status.f_frsize, status.f_favail
        # some file systems make inodes as they are needed, and say that there are none
        most = files - min(RESERVE_FILES, status.f_files // 16) if status.f_files else MOST_FILES
        return status.f_bavail * status.f_frsize, files, min(RESERVE, whole // 16), min(MOST_FILES, most)

    def is_exceeded(self, root: int) -> bool:
        """Return whether the files, with the nameless ones of processes below ``root``, are too many."""
        free, files, reserve, most_files = self._left()
        self._free, self._free_files = max(free, self._free), max(files, self._free_files)
        # what is mapped without a name, or in a closed directory, can't be counted: near the end, whoever
        # took a good part of the rest is stopped
        if free < reserve and self._begun - free > free // 8:
            return True
        now = time.monotonic()
        fewer = self._free_files - files >= max(1, min(_STEP_FILES, files // 8))
        shrunk = fewer or self._free - free >= min(_STEP, free // 8)
        if not shrunk or now < self._count_again:
            return False
        self._free, self._free_files = free, files
        used, count = _used(self._temporary, root)
        self._count_again = now + _COUNTING_SHARE * (time.monotonic() - now)
        return used > min(self._most, free - reserve) or count > most_files

    def clear(self) -> None:
        """Remove all of it; the home directory is there again, empty."""
        workspaces.empty(self._temporary)
        with contextlib.suppress(OSError):
            os.mkdir(f"{self._temporary}/{HOME}", 0o700)


def _used(directory: str, root: int) -> tuple[int, int]:
    """Return bytes and number of files below a directory, and of nameless ones on its file system."""
    device = os.stat(directory).st_dev
    total = count = 0
    for status in chain(below(directory), nameless(root, device)):
        total += status.st_blocks * BLOCK
        count += 1
        if count > MOST_FILES:
            break
    return total, count


def below(directory: str) -> Iterator[os.stat_result]:
    """Yield all files below a directory, as far as it can be read."""
    pending = [directory]
    while pending:
        with contextlib.suppress(OSError), os.scandir(pending.pop()) as entries:
            for entry in entries:
                yield entry.stat(follow_symlinks=False)
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)


def nameless(root: int, device: int) -> Iterator[os.stat_result]:
    """Yield the files that have no name any more and that a process below ``root`` holds open."""
    seen: set[int] = set()
    for pid, _, _ in tree.descendants(root):
        with contextlib.suppress(OSError):
            for number in os.listdir(proc.path(pid, "fd")):
                status = os.stat(proc.path(pid, "fd", number))
                if status.st_nlink == 0 and status.st_dev == device and status.st_ino not in seen:
                    seen.add(status.st_ino)
                    yield status

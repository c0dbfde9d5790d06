"""Whether anything may have changed in some directories since they were looked at (inotify(7)).

The kernel queues an event within the call that changes something, so a look at an empty queue is as good as a
look at the directories, for a hundredth of the price. Where the kernel does not see all changes (network file
systems, those that a virtual machine's host shares) there is no such look, and the answer is always "maybe".
Adding a watch opens nothing and follows no link at the end of a path.
"""

import ctypes
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

SURE_S: Final = 1.0
"""After so long the answer is "maybe" again: a write through a memory map tells nobody (inotify(7), Bugs)."""

# inotify(7): IN_MODIFY, IN_ATTRIB, IN_CLOSE_WRITE, IN_MOVED_FROM, IN_MOVED_TO, IN_CREATE, IN_DELETE,
# IN_DELETE_SELF, IN_MOVE_SELF
_CHANGES: Final = 0x2 | 0x4 | 0x8 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x800
_DONT_FOLLOW: Final = 0x02000000
_ONLY_DIRECTORIES: Final = 0x01000000
# statfs(2): file systems whose every change passes through this kernel
_LOCAL: Final = frozenset(
    {
        0xEF53,  # ext2, ext3, ext4
        0x58465342,  # xfs
        0x9123683E,  # btrfs
        0xF2F52010,  # f2fs
        0x2FC12FC1,  # zfs
        0x01021994,  # tmpfs
        0x794C7630,  # overlayfs
    }
)
_STATFS_BYTES: Final = 512  # more than any architecture's struct statfs, whose first word is the type
_BATCH: Final = 64 << 10

_libc: Final = ctypes.CDLL(None, use_errno=True)


class Watch:
    """Watches directories from the last ``begin`` on. Costs a descriptor."""

    def __init__(self) -> None:
        self._queue: int | None = None
        self._begun = 0
        self._possible_until = 0.0
        self._sure_until = 0.0
        if hasattr(_libc, "inotify_init1"):
            queue = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
            self._queue = queue if queue >= 0 else None

    def __del__(self) -> None:
        """Close the queue."""
        if self._queue is not None:
            os.close(self._queue)

    def quiet(self) -> bool:
        """Return whether for certain nothing has changed since what was seen."""
        return time.monotonic() < self._sure_until and not self._drain()

    def begin(self, directories: Iterable[Path]) -> int:
        """Watch these from now on; returns a number for ``seen``. One that is missing does no harm if its
        parent is among them.
        """
        self._begun += 1
        self._sure_until = 0.0
        self._drain()
        watched = all([self._add(directory) for directory in directories])  # noqa: C419 - each of them
        self._possible_until = time.monotonic() + SURE_S if watched else 0.0
        return self._begun

    def seen(self, begun: int) -> None:
        """Take note that all there is was read after that ``begin``. If another one came between, the events
        it took away are known to its own reader only.
        """
        if begun == self._begun:
            self._sure_until = self._possible_until

    def _add(self, directory: Path) -> bool:
        if self._queue is None:
            return False
        path = os.fsencode(directory)
        mask = ctypes.c_uint32(_CHANGES | _DONT_FOLLOW | _ONLY_DIRECTORIES)
        if _libc.inotify_add_watch(self._queue, path, mask) < 0:
            return not os.path.lexists(directory)
        return _is_local(path)

    def _drain(self) -> bool:
        """Take what is queued; True if there was something."""
        if self._queue is None:
            return True
        found = False
        try:
            while os.read(self._queue, _BATCH):
                found = True
        except BlockingIOError:
            return found
        return True


def _is_local(path: bytes) -> bool:
    answer = ctypes.create_string_buffer(_STATFS_BYTES)
    if _libc.statfs(path, answer) != 0:
        return False
    kind = ctypes.c_long.from_buffer(answer).value
    return kind & 0xFFFFFFFF in _LOCAL

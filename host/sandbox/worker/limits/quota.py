"""What a principal's directories hold, temporary ones too: counted now and then, and estimated in between.

The estimate is the last count and what its disks have lost since. All of a principal's processes share it, in
a file without a name. Counting takes microseconds for each file, so it is done where the estimate says that
the limit is near, and else in a small part of the time.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Final

from .. import proc
from ..config import Config
from ..names import Refused
from . import space, tree

FULL: Final = "workspace_full"
LEAST: Final = 256  # bytes that a file counts at least: what its inode takes
_RECORD: Final = struct.Struct("=qqdd")
_SHARE: Final = 20  # counting takes a twentieth of the time, near the limit a quarter
_SHARE_NEAR: Final = 4
_OFTEN_S: Final = 0.25
_SOONEST_S: Final = 0.005
_FASTEST: Final = 2 << 30  # bytes a second that commands write together
_LOOK_EVERY: Final = 64  # files
GRACE: Final = 64 << 20  # bytes that commands of a full principal may add at most, a STEP each
STEP: Final = 1 << 20  # bytes that a disk loses near the limit until files are counted again


@dataclass(frozen=True, slots=True)
class Count:
    """Bytes that were used, the most that the disk had free since, when (monotonic), how long it took."""

    used: int
    free: int
    when: float
    cost: float


class Quota:
    """The directories of one principal. ``most``: bytes they may hold, 0: as many as there is room for."""

    def __init__(self, config: Config) -> None:
        self.most = config.most_bytes
        self._page = config.page
        self._held = list(_held(config.counted))

    @property
    def _paths(self) -> list[str]:
        return [proc.path("self", "fd", descriptor) for descriptor in self._held]

    @property
    def sentence(self) -> str:
        """What is said of it where nothing more fits."""
        return sentence(self.used(), self.most)

    def used(self) -> int:
        """Return what is used, as far as it can be told without counting."""
        last = self._last()
        return 0 if last is None else last.used + last.free - self._free()

    def is_exceeded(self, most: int, root: int | None = None) -> bool:
        """Return whether more is used than ``most``; with the nameless files of processes below ``root``."""
        last = self._last()
        if last is not None:
            if last.used > most:
                return True  # all of them stop by the count of one
            lost = last.free - self._free()
            near = last.used + lost > most
            pause = max(_OFTEN_S, _SHARE * last.cost)
            young = not _is_stale(last) if near else time.monotonic() - last.when < pause
            if young and not (near and lost > STEP):
                return False
        return self.count(root, most) > most

    def require(self, more: int) -> None:
        """See that so many bytes more fit, and note them. Raises ``Refused``."""
        if more <= 0 or not self.most:
            return
        with self._alone():
            self._require(more)

    def require_named(self, size: int, begun: float) -> None:
        """See that a nameless file fits that is to get a name: what was noted of it since ``begun`` is lost
        if files were counted since. Raises ``Refused``.
        """
        if size <= 0 or not self.most:
            return
        with self._alone():
            last = self._last()
            if last is None or last.when < begun:
                return
            if self.used() + size > self.most and (used := self.count()) + size > self.most:
                raise Refused(sentence(used, self.most), FULL)
            last = self._last() or last
            self._write(Count(last.used + size, last.free, last.when, last.cost))

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep the principal's other processes from noting at the same time."""
        fcntl.lockf(self._page, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._page, fcntl.LOCK_UN)

    def _require(self, more: int) -> None:
        if self.is_exceeded(self.most - more) or self.used() + more > self.most:
            used = self.count()
            if used + more > self.most:
                alone = f"; {more >> 20} MiB more never fit" if more > self.most else ""
                raise Refused(f"{sentence(used, self.most)}{alone}", FULL)
        last = self._last()
        if last is not None:
            self._write(Count(last.used + more, last.free - more, last.when, last.cost))

    def lasts_s(self, most: int) -> float:
        """Return how long the room that is left lasts at least, until it is to be looked at again."""
        last = self._last()
        left = 0 if last is None else most - last.used - last.free + self._free()
        return max(_SOONEST_S, left / _FASTEST)

    def refresh(self) -> None:
        """Count anew, in a part of the time, what was too much: something may have been deleted."""
        last = self._last()
        if self.most and last is not None and last.used >= self.most and _is_stale(last):
            self.count()

    def counted(self, max_age_s: float) -> int:
        """Return what is used, counted within the last seconds."""
        last = self._last()
        young = last is not None and time.monotonic() - last.when <= max_age_s
        return last.used if last is not None and young else self.count()

    def count(self, root: int | None = None, most: int = 0) -> int:
        """Count, and return what is used. Processes below ``root`` stand still once they may exceed ``most``:
        nothing is to be added while files are counted.
        """
        begun, free, used = time.monotonic(), self._free(), 0
        start = self._last() or Count(0, free, 0.0, 0.0)
        with contextlib.ExitStack() as still:
            moving = root is not None
            for number, size in enumerate(_sizes(self._paths, root)):
                used += size
                if moving and number % _LOOK_EVERY == 0 and start.used + start.free - self._free() > most:
                    still.enter_context(tree.stopped(root or 0))
                    moving = False
            now = time.monotonic()
            self._write(Count(used, free, now, now - begun))
        return used

    def _free(self) -> int:
        free: dict[int, int] = {}
        for path in self._paths:
            with contextlib.suppress(OSError):
                status = os.statvfs(path)
                free[os.stat(path).st_dev] = status.f_bfree * status.f_frsize
        return sum(free.values())

    def _last(self) -> Count | None:
        """Return the last count; what the disk has had free since counts, if it was more."""
        last, free = _read(self._page), self._free()
        if last is not None and free > last.free:
            last = Count(last.used, free, last.when, last.cost)
            self._write(last)
        return last

    def _write(self, count: Count) -> None:
        os.pwrite(self._page, _RECORD.pack(count.used, count.free, count.when, count.cost), 0)


def _is_stale(last: Count) -> bool:
    """Return whether it is so long ago that counting takes a small part of the time near the limit."""
    return time.monotonic() - last.when >= _SHARE_NEAR * last.cost


def known(page: int) -> int:
    """Return what was used when it was counted last, 0 if it never was."""
    last = _read(page)
    return 0 if last is None else last.used


def _read(page: int) -> Count | None:
    data = os.pread(page, _RECORD.size, 0)
    return Count(*_RECORD.unpack(data)) if data else None


def _held(paths: Iterable[str]) -> Iterator[int]:
    """Open directories, so that they are in reach whatever becomes the root; links are not followed."""
    for path in paths:
        with contextlib.suppress(OSError):
            yield os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def sentence(used: int, most: int) -> str:
    """Return what is said of a workspace without room."""
    return f"{FULL}: {used >> 20} of {most >> 20} MiB used"


def _sizes(paths: Iterable[str], root: int | None) -> Iterator[int]:
    """Yield what each file takes; one with several names counts once."""
    several: set[tuple[int, int]] = set()
    found = chain.from_iterable(map(space.below, paths))
    if root is not None:
        devices = {os.stat(path).st_dev for path in paths}
        found = chain(found, *(space.nameless(root, device) for device in devices))
    for status in found:
        if status.st_nlink > 1:
            if (status.st_dev, status.st_ino) in several:
                continue
            several.add((status.st_dev, status.st_ino))
        yield max(LEAST, status.st_blocks * space.BLOCK)

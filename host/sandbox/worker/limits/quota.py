"""What files take: a conversation's temporary ones (``Space``), and all that a principal has (``Quota``).

A principal's are counted now and then. In between there is an estimate: the last count and what its disks
have lost since. All of a principal's processes share it, in a file without a name. Counting takes
microseconds for each file, so it is done where the estimate says that the limit is near, and else in a small
part of the time.
"""

import contextlib
import fcntl
import os
import struct
import time
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Final, NamedTuple

from .. import syscalls
from ..confine import workspaces
from ..confine.workspaces import below
from ..frames import HOME, Config
from ..names import Refused
from . import hidden_memory, tree

RESERVE: Final = 128 << 20  # bytes that stay free, or a sixteenth of a small file system
MOST_FILES: Final = 200_000
RESERVE_FILES: Final = 8192  # inodes that stay free, or a sixteenth
_STEP: Final = 16 << 20  # bytes by which the free space shrinks until files are counted again
_STEP_FILES: Final = 16_384
_COUNTING_SHARE: Final = 4
BLOCK: Final = 512  # st_blocks, stat(2)


class Space:
    """Watches the temporary files of one command's conversation. ``most``: bytes it may hold at best.

    The store's local database may lie on the same file system, so nobody may fill it: a conversation may hold
    at most what it leaves free, less a reserve, of bytes and of inodes. Asking what is free costs a
    microsecond; files are counted when that has shrunk, and in a part of the time only.
    """

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
        # what is mapped without a name can't be counted: near the end, whoever took a good part of the rest
        # is stopped
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
        total += _UNCOUNTABLE if status is None else status.st_blocks * BLOCK
        count += 1
        if count > MOST_FILES:
            break
    return total, count


def nameless(root: int, device: int) -> Iterator[os.stat_result]:
    """Yield the files that have no name any more and that a process below ``root`` holds open."""
    seen: set[int] = set()
    for pid, _, _ in tree.descendants(root):
        with contextlib.suppress(OSError):
            for number in os.listdir(syscalls.proc_path(pid, "fd")):
                status = os.stat(syscalls.proc_path(pid, "fd", number))
                if status.st_nlink == 0 and status.st_dev == device and status.st_ino not in seen:
                    seen.add(status.st_ino)
                    yield status


FULL: Final = "workspace_full"
LEAST: Final = 256  # bytes that a file counts at least: what its inode takes
_RECORD: Final = struct.Struct("=qqdd")
_NOTE: Final = struct.Struct("=qqd")
_MOST_NOTES: Final = 256
_NOTED_S: Final = 10.0
_UNCOUNTABLE: Final = 1 << 60  # bytes
_LISTING_S: Final = 0.05
_STARTING_S: Final = 0.5  # until a command is its program; before, nobody may look into it
_SHARE: Final = 20  # counting takes a twentieth of the time, near the limit a quarter
_SHARE_NEAR: Final = 4
_OFTEN_S: Final = 0.25
_SOONEST_S: Final = 0.005
_FASTEST: Final = 2 << 30  # bytes a second that commands write together
_LOOK_EVERY: Final = 64  # files
GRACE: Final = 64 << 20  # bytes that commands of a full principal may add at most, a STEP each
STEP: Final = 1 << 20  # bytes that a disk loses near the limit until files are counted again


class Count(NamedTuple):
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
        self._began, self._looked_at_from = 0, 0.0
        self._launcher: int | None = None
        self._hidden, self._looked_at, self._clean = False, 0, 0

    @property
    def _paths(self) -> list[str]:
        return [syscalls.proc_path("self", "fd", descriptor) for descriptor in self._held]

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

    def refresh(self) -> int | None:
        """Count anew what was too much, for something may have been deleted; or return in how many
        milliseconds that may be done, as counting takes a part of the time alone.
        """
        last = self._last()
        if not self.most or last is None or last.used < self.most:
            return None
        if not _is_stale(last):
            return int(1000 * _SHARE_NEAR * last.cost) + 1
        self.count()
        return None

    def counted(self, max_age_s: float) -> int:
        """Return what is used, counted within the last seconds."""
        last = self._last()
        young = last is not None and time.monotonic() - last.when <= max_age_s
        return last.used if last is not None and young else self.count()

    def count(self, root: int | None = None, most: int = 0) -> int:
        """Count, and return what is used. Processes below ``root`` stand still once they may exceed ``most``:
        nothing is to be added while files are counted.
        """
        begun, free = time.monotonic(), self._free()
        with contextlib.ExitStack() as still:
            used = self._sum(root, most, still)
            now = time.monotonic()
            self._write(Count(used, free, now, now - begun))
        return used

    def _sum(self, root: int | None, most: int, still: contextlib.ExitStack) -> int:
        used, moving, start = 0, root is not None, self._last() or Count(0, self._free(), 0.0, 0.0)
        whole = True
        for number, size in enumerate(_sizes(self._paths)):
            used, whole = used + size, whole and size > 0
            if moving and number % _LOOK_EVERY == 0 and start.used + start.free - self._free() > most:
                still.enter_context(tree.stopped(root or 0))
                moving = False
        used += 0 if whole else self.most + BLOCK  # full, until somebody removes what can't be counted
        return used + self._nameless(root, used)

    def begin(self, launcher: int | None) -> None:
        """Take note of what is there before a command; ``launcher``: beside it, and ours."""
        last = self._last()
        self._began = (0 if last is None else last.used) + self._free()
        self._launcher, self._looked_at_from = launcher, time.monotonic() + _STARTING_S
        self._hidden, self._looked_at, self._clean = False, 0, 0

    def _nameless(self, root: int | None, named: int) -> int:
        """Return what commands hold of files without a name, beside ``named`` bytes; those below ``root`` by
        what is open, and where they may hide some, all that the disk has lost since they began.
        """
        now, mine = time.monotonic(), os.getpid()
        others = sum(size for whose, size, until in self._notes() if whose != mine and until > now)
        if root is None:
            return others
        own = _nameless_bytes(self._paths, root)
        unseen = self._began - self._free() - named - own - others
        own += unseen if unseen > STEP and self._may_hide(root) else 0
        self.note_nameless(own)
        return own + others

    def _notes(self) -> list[tuple[int, int, float]]:
        """Return what is held of files without a name: by whom, how much, and until when that counts."""
        return list(_NOTE.iter_unpack(os.pread(self._page, _MOST_NOTES * _NOTE.size, _RECORD.size)))

    def note_nameless(self, size: int, whose: int | None = None, lasts_s: float = _NOTED_S) -> None:
        """Tell the principal's other processes what is held of files without a name: by the commands of this
        one, or by an upload (``whose``).
        """
        notes, mine, now, last = self._notes(), whose or os.getpid(), time.monotonic(), _read(self._page)
        at = next((at for at, note in enumerate(notes) if note[0] == mine), None)
        if at is None and not size:
            return
        if at is None:
            at = next((at for at, note in enumerate(notes) if note[2] < now), len(notes))
        # By then, whoever goes on has counted again.
        until = now + lasts_s + 2 * _SHARE * (last.cost if last else 0)
        place = _RECORD.size + min(at, _MOST_NOTES - 1) * _NOTE.size
        os.pwrite(self._page, _NOTE.pack(mine, size, until), place)

    def _may_hide(self, root: int) -> bool:
        """Return whether a process below ``root`` may hold files that don't show. Of very many it looks at
        some at a time; what it found last counts until all were looked at.
        """
        until, pids = time.monotonic() + _LISTING_S, [pid for pid, _, _ in tree.descendants(root)]
        start = self._looked_at % max(1, len(pids))
        for pid in pids[start:] + pids[:start]:
            self._looked_at, self._clean = self._looked_at + 1, self._clean + 1
            if found := self._hides(pid):
                self._hidden, self._clean = True, 0
            elif self._clean >= len(pids):
                self._hidden = False
            if found or time.monotonic() > until:
                break
        return self._hidden

    def _hides(self, pid: int) -> bool:
        """Return whether a process maps a file without a name, of unknown size, or lets nobody look."""
        try:
            os.listdir(syscalls.proc_path(pid, "fd"))
            return hidden_memory.maps_nameless_file(pid)
        except PermissionError:
            return pid != self._launcher and time.monotonic() > self._looked_at_from
        except OSError:
            return False  # it has ended

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
    return f"{FULL}: {used / (1 << 20):.1f} of {most >> 20} MiB used"


def _nameless_bytes(paths: Iterable[str], root: int) -> int:
    devices = {os.stat(path).st_dev for path in paths}
    found = chain.from_iterable(nameless(root, device) for device in devices)
    return sum(max(LEAST, status.st_blocks * BLOCK) for status in found)


def _sizes(paths: Iterable[str]) -> Iterator[int]:
    """Yield what each file takes, 0 for what is uncountable; one with several names counts once."""
    several: set[tuple[int, int]] = set()
    for status in chain.from_iterable(map(below, paths)):
        if status is None:
            yield 0
            continue
        if status.st_nlink > 1:
            if (status.st_dev, status.st_ino) in several:
                continue
            several.add((status.st_dev, status.st_ino))
        yield max(LEAST, status.st_blocks * BLOCK)

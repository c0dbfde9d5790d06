"""Memory that no process's resident set shows: page tables, shared memory let go of, sockets and pipes.

Whoever wants to take more than the limit without being seen needs address space or descriptors for it. Both
are cheap to read, so the exact look is taken only where there are more of them than ordinary work has.
"""

# Descriptors and raw paths on purpose: pathlib can't work relative to a directory that is held open.
# ruff: noqa: PTH115, PTH116, PTH123, PTH208

from __future__ import annotations

import contextlib
import os
import re
import time
from dataclasses import dataclass
from typing import Final

from . import proc

PAGE: Final = os.sysconf("SC_PAGE_SIZE")
# what one descriptor may hold, about: net.core.wmem_max; a pipe beyond its user's quota (pipe(7))
SOCKET_BYTES: Final = 256 << 10
PIPE_BYTES: Final = 8 << 10
_PAUSE_S: Final = 0.1
_PAUSE_SHARE: Final = 4
_DESCRIPTOR_SHARE: Final = 1 << 20  # so many bytes of the limit allow one descriptor without a closer look
_TABLE_SHARE: Final = 8  # page tables are looked at when they could take this part of the limit
_ENTRIES_PER_BYTE: Final = 512  # a page of address space needs eight bytes of page table
# shared memory without a name: "/dev/zero (deleted)", proc_pid_maps(5)
_SHARED: Final = re.compile(rb"^([0-9a-f]+)-([0-9a-f]+) ..[-x]s [0-9a-f]+ \S+ (\d+) +/dev/zero", re.M)


@dataclass(frozen=True, slots=True)
class Process:
    """What proc_pid_statm(5) tells of a process, in bytes; ``file``: its resident shared and file pages.

    ``pid``: where to read more, one of its threads if the first has ended.
    """

    pid: int
    size: int
    resident: int
    file: int
    private: int


def look(pid: int) -> Process | None:
    """Read a process's sizes, None if it is gone or waits to be reaped.

    A process goes on when its first thread ends, and its number then tells of no memory and no descriptors.
    """
    if (found := _sizes(pid)) is not None:
        return found
    with contextlib.suppress(OSError):
        for thread in os.listdir(proc.path(pid, "task")):
            if (found := _sizes(int(thread))) is not None:
                return found
    return None


def _sizes(pid: int) -> Process | None:
    try:
        size, resident, file, _, _, private, *_ = _read(proc.path(pid, "statm")).split()
    except ValueError:
        return None
    if size == b"0":  # its memory is gone
        return None
    return Process(pid, int(size) * PAGE, int(resident) * PAGE, int(file) * PAGE, int(private) * PAGE)


class Watch:
    """Looks from time to time, so that looking takes a small part of the time; in between the last holds."""

    def __init__(self) -> None:
        self._next = 0.0
        self._found = (0, 0)

    def look(self, processes: list[Process], limit: int) -> tuple[int, int]:
        """Return bytes of nameless shared memory, an upper bound, and of what no mapping shows."""
        started = time.monotonic()
        if started >= self._next:
            other = page_tables(processes, limit) + descriptors(processes, limit)
            self._found = shared(processes, limit), other
            now = time.monotonic()
            self._next = now + max(_PAUSE_S, _PAUSE_SHARE * (now - started))
        return self._found


def shared(processes: list[Process], limit: int) -> int:
    """Sizes of the nameless shared mappings: what is in them can't be known once no page is mapped.

    0 where there is too little address space to hide anything.
    """
    sizes = {process.pid: process.size - process.private for process in processes}
    rest = sum(sizes.values())
    if rest <= limit:
        return 0
    areas: dict[bytes, int] = {}
    for pid, size in sorted(sizes.items(), key=lambda item: -item[1]):
        if rest <= limit // 2:  # the smallest can't hide much
            break
        rest -= size
        maps = _read(proc.path(pid, "maps"))
        for start, end, inode in _SHARED.findall(maps):
            areas[inode] = max(areas.get(inode, 0), int(end, 16) - int(start, 16))
        if not maps and size > limit and look(pid) is not None:  # it hides them, being not dumpable
            areas[b"%d" % pid] = size
    return sum(areas.values())


def page_tables(processes: list[Process], limit: int) -> int:
    """Bytes of page tables, where there is address space enough for many."""
    if sum(process.size for process in processes) // _ENTRIES_PER_BYTE <= limit // _TABLE_SHARE:
        return 0
    total = 0
    for process in processes:
        found = re.search(rb"^VmPTE:\s+(\d+) kB", _read(proc.path(process.pid, "status")), re.M)
        total += int(found[1]) << 10 if found else 0
    return total


def descriptors(processes: list[Process], limit: int) -> int:
    """Sockets and pipes, each once, when there are many descriptors (their number: Linux 6.2)."""
    counts = {process.pid: _number_of_descriptors(process.pid) for process in processes}
    if sum(counts.values()) <= limit // _DESCRIPTOR_SHARE:
        return 0
    seen: set[str] = set()
    total = 0
    for pid, count in counts.items():
        total += _held(pid, count, seen)
        if total > limit:  # what else there is no longer matters
            break
    return total


def _held(pid: int, count: int, seen: set[str]) -> int:
    """Return what one process's descriptors hold that was not ``seen`` before."""
    try:
        names = os.listdir(proc.path(pid, "fd"))
    except PermissionError:
        return count * SOCKET_BYTES
    except OSError:  # it has ended
        return 0
    found: set[str] = set()
    for name in names:
        with contextlib.suppress(OSError):
            found.add(os.readlink(proc.path(pid, "fd", name)))
    found -= seen
    seen |= found
    sizes = {"socket": SOCKET_BYTES, "pipe": PIPE_BYTES}
    return sum(sizes.get(target.partition(":")[0], 0) for target in found)


def _number_of_descriptors(pid: int) -> int:
    try:
        return os.stat(proc.path(pid, "fd")).st_size
    except OSError:
        return 0


def _read(path: str) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read()
    except OSError:
        return b""

"""Memory that no process's resident set shows: page tables, records of mappings, shared memory let go of,
sockets and pipes.

Whoever wants to take more than the limit without being seen needs address space, descriptors or TCP sockets
for it, or makes the machine's shared memory grow. All are cheap to read, so the exact look is taken only
where there is more of them than ordinary work has.
"""

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

from .. import syscalls

PAGE: Final = os.sysconf("SC_PAGE_SIZE")
# what one descriptor may hold, about: net.core.wmem_default, as the filter lets nobody ask for more; a pipe
# beyond its user's quota (pipe(7))
SOCKET_BYTES: Final = 256 << 10
PIPE_BYTES: Final = 8 << 10
_PAUSE_S: Final = 0.1
_PAUSE_SHARE: Final = 4
_DESCRIPTOR_SHARE: Final = 1 << 20  # so many bytes of the limit allow one descriptor without a closer look
_TABLE_SHARE: Final = 8  # page tables are looked at when they could take this part of the limit
_ENTRIES_PER_BYTE: Final = 512  # a page of address space needs eight bytes of page table
_MAPPING_BYTES: Final = 256  # the kernel's record of one mapping, and its place in the tree of them
_MANY_MAPPINGS: Final = 4096  # so many may take a while to list
_LISTING_S: Final = 0.05  # a process that is changing them lets nobody read on for seconds
_DESCRIPTOR_BYTES: Final = 256  # an open file at its smallest
# The machine's shared memory may grow by so many limits before it is taken for that of a command that could
# have made it: others' may grow too, by all that they may take in the open.
_GROWTH_SHARE: Final = 2
_TCP_BYTES: Final = 6 << 20  # one way of a TCP socket, where the kernel doesn't say (tcp(7))
# shared memory without a name: "/dev/zero (deleted)", proc_pid_maps(5)
_SHARED: Final = re.compile(rb"^([0-9a-f]+)-([0-9a-f]+) ..[-x]s [0-9a-f]+ \S+ (\d+) +/dev/zero", re.M)


class Process(NamedTuple):
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
        for thread in os.listdir(syscalls.proc_path(pid, "task")):
            if (found := _sizes(int(thread))) is not None:
                return found
    return None


def _sizes(pid: int) -> Process | None:
    try:
        size, resident, file, _, _, private, *_ = read(syscalls.proc_path(pid, "statm")).split()
    except ValueError:
        return None
    if size == b"0":  # its memory is gone
        return None
    return Process(pid, int(size) * PAGE, int(resident) * PAGE, int(file) * PAGE, int(private) * PAGE)


def in_turn(processes: list[Process], rank: Callable[[Process], Any], until: float) -> Iterator[Process]:
    """Yield processes by their rank, at least one, as long as it isn't ``until`` (by the monotonic clock)."""
    for process in sorted(processes, key=rank):
        yield process
        if time.monotonic() > until:
            return


class Listing(NamedTuple):
    """What proc_pid_maps(5) tells of a process: how many mappings it has, and the nameless shared ones.

    ``areas``: their sizes in bytes, by inode. ``asked``: when. ``hidden``: it tells nothing.
    """

    mappings: int
    areas: dict[bytes, int]
    asked: float
    hidden: bool = False


class Watch:
    """Looks from time to time, so that looking takes a small part of the time; in between the last holds."""

    def __init__(self, *, own_network: bool = False) -> None:
        self._own_network = own_network
        self._next = 0.0
        self._found = (0, 0)
        self._shared_before: int | None = None
        self._tcp_before: int | None = None
        self._listed: dict[int, Listing] = {}

    def look(self, processes: list[Process], limit: int) -> tuple[int, int]:
        """Return bytes of nameless shared memory, an upper bound, and of what no mapping shows."""
        if time.monotonic() >= self._next:
            started = time.process_time()
            shared, records = self._mapped(processes, limit)
            other = records + page_tables(processes, limit) + descriptors(processes, limit)
            self._found = shared, other + (self._tcp() if self._own_network else 0)
            cost = time.process_time() - started
            self._next = time.monotonic() + max(_PAUSE_S, _PAUSE_SHARE * cost)
        return self._found

    def forget(self) -> None:
        """Have the next look be a fresh one."""
        self._next = 0.0

    def _mapped(self, processes: list[Process], limit: int) -> tuple[int, int]:
        """Return bytes of nameless shared memory, and of the kernel's records of mappings.

        What is in a shared area can't be known once its pages are not mapped; of one most of which was
        unmapped not even the size, though it keeps every page while one is mapped. So areas count whole, and
        whoever has one is held for the growth of the machine's shared memory, once that is beyond doubt.
        0 where there is too little of all that to hide anything.
        """
        growth = self._growth()
        suspect = growth > _GROWTH_SHARE * limit
        open_to_all = sum(process.size - process.private for process in processes)
        records = sum(process.size for process in processes) // PAGE * _MAPPING_BYTES
        if open_to_all <= limit and records <= limit // _TABLE_SHARE and not suspect:
            return 0, 0
        # Who may be held for others' growth is looked at to the end, which takes long for culprits only.
        until = float("inf") if suspect else time.monotonic() + _LISTING_S
        listings = self._list(processes, limit, until)
        areas: dict[bytes, int] = {}
        for listing in listings:
            for inode, size in listing.areas.items():
                areas[inode] = max(areas.get(inode, 0), size)
        shared = sum(areas.values())
        if suspect and any(listing.areas or listing.hidden for listing in listings):
            shared = max(shared, growth)
        return shared, sum(listing.mappings for listing in listings) * _MAPPING_BYTES

    def _list(self, processes: list[Process], limit: int, until: float) -> list[Listing]:
        """List the mappings of processes, as many as time allows; of the others the last listing holds."""
        last = {each.pid: self._listed[each.pid] for each in processes if each.pid in self._listed}
        self._listed = dict(last)
        for process in in_turn(
            processes, lambda each: last[each.pid].asked if each.pid in last else 0.0, until
        ):
            self._listed[process.pid] = listing(process, limit, until)
        return list(self._listed.values())

    def _growth(self) -> int:
        """Return by how many bytes the machine's shared memory has grown since the first look."""
        found = re.search(rb"^Shmem:\s+(\d+) kB", read(syscalls.proc_path("meminfo")), re.M)
        now = int(found[1]) << 10 if found else 0
        if self._shared_before is None:
            self._shared_before = now
        return now - self._shared_before

    def _tcp(self) -> int:
        """Return the bytes that TCP sockets in there, accepted or not, may hold at most (tcp(7)).

        How many there are is known of this network namespace, what they hold of the whole machine's.
        """
        found = re.search(rb"^TCP: inuse (\d+) .* mem (\d+)", read(syscalls.proc_path("net/sockstat")), re.M)
        if found is None:
            return 0
        held = int(found[2]) * PAGE
        if self._tcp_before is None:
            self._tcp_before = held
        if found[1] == b"0" or held <= self._tcp_before:
            return 0
        bounds = [read(syscalls.proc_path("sys/net/ipv4", name)).split() for name in ("tcp_rmem", "tcp_wmem")]
        each = sum(int(bound[-1]) if bound else _TCP_BYTES for bound in bounds)
        return min(int(found[1]) * each, held - self._tcp_before)


def listing(process: Process, limit: int, until: float) -> Listing:
    """List a process's mappings; from ``until`` (by the monotonic clock) on suppose the most it may have."""
    count, areas, now = 0, dict[bytes, int](), time.monotonic()
    with (
        contextlib.suppress(OSError),
        open(syscalls.proc_path(process.pid, "maps"), "rb", buffering=0) as maps,
    ):
        while lines := maps.read(1 << 16):
            count += lines.count(b"\n")
            if b"/dev/zero" in lines:
                for start, end, inode in _SHARED.findall(lines):
                    areas[inode] = max(areas.get(inode, 0), int(end, 16) - int(start, 16))
            if time.monotonic() > until:
                break
        else:
            if count:
                return Listing(count, areas, now)
    if 0 < count < _MANY_MAPPINGS or look(process.pid) is None:
        return Listing(count, areas, now)
    hidden, open_to_all = count == 0, process.size - process.private
    if hidden and open_to_all > limit:
        areas[b"%d" % process.pid] = open_to_all
    most = int(read(syscalls.proc_path("sys/vm/max_map_count")) or 1 << 20)
    return Listing(min(process.size // PAGE, most), areas, now, hidden)


def page_tables(processes: list[Process], limit: int) -> int:
    """Bytes of page tables, where there is address space enough for many."""
    if sum(process.size for process in processes) // _ENTRIES_PER_BYTE <= limit // _TABLE_SHARE:
        return 0
    total = 0
    for process in processes:
        found = re.search(rb"^VmPTE:\s+(\d+) kB", read(syscalls.proc_path(process.pid, "status")), re.M)
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
        total += count * _DESCRIPTOR_BYTES + _held(pid, count, seen)
        if total > limit:  # what else there is no longer matters
            break
    return total


def _held(pid: int, count: int, seen: set[str]) -> int:
    """Return what one process's descriptors hold that was not ``seen`` before."""
    try:
        names = os.listdir(syscalls.proc_path(pid, "fd"))
    except PermissionError:
        return count * SOCKET_BYTES
    except OSError:  # it has ended
        return 0
    found: set[str] = set()
    for name in names:
        with contextlib.suppress(OSError):
            found.add(os.readlink(syscalls.proc_path(pid, "fd", name)))
    found -= seen
    seen |= found
    sizes = {"socket": SOCKET_BYTES, "pipe": PIPE_BYTES}
    return sum(sizes.get(target.partition(":")[0], 0) for target in found)


def _number_of_descriptors(pid: int) -> int:
    try:
        return os.stat(syscalls.proc_path(pid, "fd")).st_size
    except OSError:
        return 0


def read(path: str) -> bytes:
    """Return a file of /proc, nothing if that fails."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read()
    except OSError:
        return b""


_MAPPED: Final = re.compile(rb" /(?!dev/).* \(deleted\)$", re.M)  # proc_pid_maps(5)


def maps_nameless_file(pid: int) -> bool:
    """Return whether a process maps a file of a disk that has no name any more. Raises ``OSError``."""
    with open(syscalls.proc_path(pid, "maps"), "rb", buffering=0) as maps:
        while lines := maps.read(1 << 16):
            if _MAPPED.search(lines):
                return True
    return False

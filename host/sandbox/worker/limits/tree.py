"""The processes below a reaper: counting what they use, and ending them all."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from typing import Final, NamedTuple

from .. import syscalls
from . import hidden_memory

SWEEP_LIMIT_MS: Final = 5000  # a process in uninterruptible sleep may outlive it
_RETRY_S: Final = 0.0005
_ASKING_S: Final = 0.1
_GROWTH: Final = 1 << 20  # less is none, or who grows a little all the time would be asked all the time


class Usage(NamedTuple):
    """What the processes below take: tasks (threads count) and bytes of memory.

    ``certain``: it is above the limit even if all that was not looked at is left out.
    """

    tasks: int
    memory: int
    certain: bool = False


def descendants(root: int, enough: int = 1 << 22) -> list[tuple[int, int, int]]:
    """Return ``(pid, parent, threads)`` of everything below ``root``, as far as it can be seen now.

    Stops after ``enough`` processes: a fork bomb must not be counted to its end while it grows. Who is gone
    by the time of the look isn't among them: one whose processes die at once would pass for a few.
    """
    found: list[tuple[int, int, int]] = []
    queue = [(child, root) for child in _children(root)[0]]
    while queue and len(found) < enough:
        pid, parent = queue.pop()
        children, threads = _children(pid)
        if threads:
            found.append((pid, parent, threads))
        queue.extend((child, pid) for child in children)
    return found


def children(pid: int) -> list[int]:
    """Return the pids of a process's children."""
    return _children(pid)[0]


def sessions(root: int) -> int:
    """Return how many sessions the processes below ``root`` are in."""
    found: set[int] = set()
    for pid, _, _ in descendants(root):
        with contextlib.suppress(ProcessLookupError):
            found.add(os.getsid(pid))
    return len(found)


def tasks_of(uid: int) -> int:
    """Return how many threads a uid has now."""
    total = 0
    for name in os.listdir(syscalls.proc_path()):
        with contextlib.suppress(OSError):
            if name.isdigit() and os.stat(syscalls.proc_path(name)).st_uid == uid:
                total += len(os.listdir(syscalls.proc_path(name, "task")))
    return total


def _children(pid: int) -> tuple[list[int], int]:
    """Children of all threads of a process, and how many threads it has (proc_pid_task(5))."""
    children: list[int] = []
    try:
        threads = os.listdir(syscalls.proc_path(pid, "task"))
    except OSError:
        return [], 0
    for thread in threads:
        pids = hidden_memory.read(syscalls.proc_path(pid, "task", thread, "children")).split()
        children.extend(int(child) for child in pids)
    return children, len(threads)


class Part(NamedTuple):
    """A process's share of memory in bytes, private and shared; its size when asked, and when that was."""

    private: int
    shared: int
    resident: int
    asked: float


class Parts(NamedTuple):
    """The sums of all parts in bytes. ``least``: of those alone that were asked, private and shared."""

    private: int
    shared: int
    least: int


class Proportions:
    """The parts of one command's processes, every page divided by those who map it (proc_pid_smaps(5)).

    To tell, the kernel needs up to 50 ms for a process with many pages or mappings. So only some are asked at
    a time, who grew first, and the others count as they were: whoever is watched must not be able to keep the
    watch busy for long.
    """

    def __init__(self) -> None:
        self._known: dict[int, Part] = {}

    def parts(self, processes: list[hidden_memory.Process]) -> Parts:
        """Ask as many as time allows, and add up: of who was never asked all it maps, others' growth."""
        known = {each.pid: self._known[each.pid] for each in processes if each.pid in self._known}
        ended = set()
        until = time.monotonic() + _ASKING_S
        for process in hidden_memory.in_turn(processes, lambda each: _rank(each, known.get(each.pid)), until):
            if (part := ask(process)) is None:
                ended.add(process.pid)
            else:
                known[process.pid] = part
        self._known = {pid: part for pid, part in known.items() if pid not in ended}
        private = shared = least = 0
        for process in processes:
            if process.pid in ended:
                continue
            part = known.get(process.pid) or Part(0, process.file, process.file, 0.0)
            least += part.private + part.shared if part.asked else 0
            private += part.private + max(0, process.resident - part.resident)
            shared += part.shared
        return Parts(private, shared, least)


def _rank(process: hidden_memory.Process, known: Part | None) -> tuple[int, float]:
    """Order: who was never asked or grew, by how much; then who was asked longest ago."""
    if known is None:
        return -process.resident // _GROWTH - 1, 0.0
    return -max(0, (process.resident - known.resident) // _GROWTH), known.asked


def ask(process: hidden_memory.Process) -> Part | None:
    """Return a process's part, all that it maps if it hides it, being not dumpable; None if it has ended."""
    sizes = {b"Rss:": 0, b"Pss_Anon:": 0, b"Pss_Shmem:": 0}
    for line in hidden_memory.read(syscalls.proc_path(process.pid, "smaps_rollup")).splitlines():
        name, *rest = line.split()
        if name in sizes:
            sizes[name] = int(rest[0]) << 10
    now = time.monotonic()
    if any(sizes.values()):
        return Part(sizes[b"Pss_Anon:"], sizes[b"Pss_Shmem:"], max(process.resident, sizes[b"Rss:"]), now)
    if (hidden := hidden_memory.look(process.pid)) is None:
        return None
    return Part(hidden.resident - hidden.file, hidden.file, hidden.resident, now)


class Meter:
    """Measures what one command takes, again and again."""

    def __init__(self, *, own_network: bool = False) -> None:
        self._proportions = Proportions()
        self._hidden = hidden_memory.Watch(own_network=own_network)

    def usage(self, root: int, besides: int | None, memory_limit: int, task_limit: int) -> Usage:
        """Measure everything below ``root`` but ``besides``; shared pages are told apart only when the quick
        sum is over the limit.
        """
        processes = [found for found in descendants(root, task_limit + 2) if found[0] != besides]
        tasks = sum(threads for _, _, threads in processes)
        if tasks > task_limit:
            return Usage(tasks, 0)
        sizes = {pid: found for pid, _, _ in processes if (found := hidden_memory.look(pid)) is not None}
        known = list(sizes.values())
        private, shared = sum(p.resident - p.file for p in known), sum(p.file for p in known)
        doubt = 0
        if private + shared > memory_limit:
            lodgers = {pid for pid, parent, _ in processes if _lodges(pid, parent, sizes)}
            known = [found for pid, found in sizes.items() if pid not in lodgers]
            parts = self._proportions.parts(known)
            private, shared = parts.private, parts.shared
            doubt = private + shared - parts.least
        if private + shared <= memory_limit:
            areas, other = self._hidden.look(known, memory_limit)
            shared, private = max(shared, areas), private + other
        return Usage(tasks, private + shared, certain=private + shared - doubt > memory_limit)

    def forget(self) -> None:
        """Have the next look be a fresh one."""
        self._hidden.forget()


def _lodges(pid: int, parent: int, sizes: dict[int, hidden_memory.Process]) -> bool:
    """Whether a process runs in its parent's memory, as a child of vfork(2) does until it is a program."""
    if pid not in sizes or parent not in sizes:
        return False
    return syscalls.share_memory(sizes[pid].pid, sizes[parent].pid)


def end_all(*, scoped: bool) -> bool:
    """Kill everything below this process and reap it; True once nothing is left.

    ``scoped``: the signal scope was proven, so ``kill(-1)`` reaches the descendants only. Without it the tree
    is walked, stopped first so that it can't outrun the walk; orphans come to us, the subreaper.
    """
    deadline = time.monotonic() + SWEEP_LIMIT_MS / 1000
    while time.monotonic() < deadline:
        if scoped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(-1, signal.SIGKILL)
        else:
            kill_walking()
        if not _reap():
            return True
        time.sleep(_RETRY_S)
    return False


def kill_walking() -> None:
    """Stop, then kill, everything below this process that can be seen; what is forked meanwhile goes on."""
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid, _, _ in descendants(os.getpid()):
            with contextlib.suppress(OSError):
                os.kill(pid, number)


@contextlib.contextmanager
def stopped(root: int) -> Iterator[None]:
    """Have everything below ``root`` stand still meanwhile; what is forked between two looks goes on."""
    found: set[int] = set()
    for _ in range(2):
        for pid, _, _ in descendants(root):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGSTOP)
                found.add(pid)
    try:
        yield
    finally:
        for pid in found:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGCONT)


def reap_orphans(kept: int) -> None:
    """Collect who has ended, as long as that is not ``kept``, whose end others wait for."""
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
            if ended.si_pid == kept:
                return
            os.waitpid(ended.si_pid, 0)


def _reap() -> bool:
    """Collect what has ended; False when there are no children left."""
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return False
        if pid == 0:
            return True

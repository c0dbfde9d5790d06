"""What each of many processes has when every page is divided by those who map it (proc_pid_smaps(5)).

To tell, the kernel needs up to 50 ms for a process with many pages or mappings. So only some are asked at a
time, who grew first, and the others count as they were: whoever is watched must not be able to keep the watch
busy for long.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

from .. import proc
from . import hidden_memory

_ASKING_S: Final = 0.1
_GROWTH: Final = 1 << 20  # less is none, or who grows a little all the time would be asked all the time


@dataclass(frozen=True, slots=True)
class Part:
    """A process's share of memory in bytes, private and shared; its size when asked, and when that was."""

    private: int
    shared: int
    resident: int
    asked: float


@dataclass(frozen=True, slots=True)
class Parts:
    """The sums of all parts in bytes. ``least``: of those alone that were asked, private and shared."""

    private: int
    shared: int
    least: int


class Proportions:
    """The parts of one command's processes."""

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
    for line in hidden_memory.read(proc.path(process.pid, "smaps_rollup")).splitlines():
        name, *rest = line.split()
        if name in sizes:
            sizes[name] = int(rest[0]) << 10
    now = time.monotonic()
    if any(sizes.values()):
        return Part(sizes[b"Pss_Anon:"], sizes[b"Pss_Shmem:"], max(process.resident, sizes[b"Rss:"]), now)
    if (hidden := hidden_memory.look(process.pid)) is None:
        return None
    return Part(hidden.resident - hidden.file, hidden.file, hidden.resident, now)

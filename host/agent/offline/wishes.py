"""What a person may wish for, and which wishes may be granted side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from host.agent.offline.when import When

MEMORY_FILE: Final = "MEMORY.md"


@dataclass(frozen=True, slots=True)
class Remember:
    """Keep a note in ``MEMORY_FILE``."""

    text: str


@dataclass(frozen=True, slots=True)
class Run:
    """Run a shell command."""

    command: str


@dataclass(frozen=True, slots=True)
class Write:
    """Write a file; ``overwrite`` an existing one only when asked to."""

    text: str
    path: str
    overwrite: bool = False


@dataclass(frozen=True, slots=True)
class Append:
    """Add a line to a file."""

    text: str
    path: str


@dataclass(frozen=True, slots=True)
class Read:
    """Show a file."""

    path: str


@dataclass(frozen=True, slots=True)
class ListFiles:
    """List a directory."""

    path: str = "."


@dataclass(frozen=True, slots=True)
class Schedule:
    """Have a prompt run later."""

    prompt: str
    when: When


@dataclass(frozen=True, slots=True)
class ListTasks:
    """Show the scheduled tasks."""


@dataclass(frozen=True, slots=True)
class CancelTask:
    """Cancel a scheduled task."""

    task_id: str


@dataclass(frozen=True, slots=True)
class Send:
    """Send a message while the run goes on."""

    text: str


@dataclass(frozen=True, slots=True)
class Recall:
    """Say what the person said; with ``notes`` also what ``MEMORY_FILE`` holds."""

    notes: bool


@dataclass(frozen=True, slots=True)
class Unclear:
    """Words that sound like a wish but lack something; ``reason`` is a sentence."""

    text: str
    reason: str


Wish = (
    Remember
    | Run
    | Write
    | Append
    | Read
    | ListFiles
    | Schedule
    | ListTasks
    | CancelTask
    | Send
    | Recall
    | Unclear
)
Steps = tuple[tuple[Wish, ...], ...]


def conflict(one: Wish, other: Wish) -> bool:
    """Return whether one wish needs the other to be over: it changes what the other reads or changes."""
    reads, writes = _uses(one)
    other_reads, other_writes = _uses(other)
    return _overlap(writes, other_reads | other_writes) or _overlap(other_writes, reads)


def _uses(wish: Wish) -> tuple[set[str], set[str]]:
    """What a wish reads and what it changes; a name that ends with ``*`` stands for all that begin so."""
    match wish:
        case Run():
            return {"file:*"}, {"file:*"}
        case Write() | Append():
            return set(), {f"file:{wish.path}"}
        case Remember():
            return set(), {f"file:{MEMORY_FILE}"}
        case Recall(notes=True):
            return {f"file:{MEMORY_FILE}"}, set()
        case Read():
            return {f"file:{wish.path}"}, set()
        case ListFiles():
            return {"file:*"}, set()
        case ListTasks():
            return {"task:*"}, set()
        case Schedule():
            return set(), {f"task:{wish.prompt}"}
        case CancelTask():
            return set(), {f"task:{wish.task_id}"}
    return set(), set()


def _overlap(some: set[str], others: set[str]) -> bool:
    return any(_covers(a, b) or _covers(b, a) for a in some for b in others)


def _covers(name: str, other: str) -> bool:
    return name == other or (name.endswith(":*") and other.startswith(name[:-1]))

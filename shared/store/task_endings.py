"""The rules of how a slot ends, whatever the engine."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from shared.models import Task, TaskRun, TaskRunState

TRIES: Final = 3
"""How often a ``once`` task is tried, and how often a slot is started whose host keeps dying."""

BACKOFF_MS: Final = (60_000, 300_000)
"""How long a ``once`` task waits after its first and its second failure, in milliseconds."""

NOT_REPEATED: Final = frozenset({TaskRunState.CANCELLED, TaskRunState.PAUSED})
"""Endings that somebody has to look at first."""

ABANDONED: Final = "The host that ran this slot stopped before it finished; it was not run again because {}."

Claimed = tuple[Task, TaskRun]


class Fate(Enum):
    """What becomes of a dead owner's claim, when it has no outcome yet."""

    RERUN = auto()
    WAIT = auto()


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a slot ended; ``final``: whatever the task's rules, it is not tried again."""

    state: TaskRunState
    result: str | None = None
    error: str | None = None
    final: bool = False

    def next_try(self, failures: int, now: int) -> int | None:
        """Return when a ``once`` task is tried again that has failed so often, None if it isn't."""
        if self.final or self.state in NOT_REPEATED or failures >= TRIES:
            return None
        return now + BACKOFF_MS[failures - 1]


def abandoned(reason: str, *, final: bool = False) -> Outcome:
    """Return the outcome of a dead owner's slot that is not run again."""
    return Outcome(TaskRunState.ERROR, error=ABANDONED.format(reason), final=final)

"""The part of the Store contract that is about scheduled tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from shared.models import Outbound, Page, Task, TaskRun, TaskRunState, TaskStatus


@dataclass(frozen=True, slots=True)
class TaskMetrics:
    """Figures for /metrics: tasks due now, slots running, seconds the oldest due one is late."""

    due: int
    running: int
    overdue_seconds: float


class Tasks(Protocol):
    """Scheduled tasks, their slots and claims. Rules: the tasks contract."""

    async def add(
        self, task: Task, *, quota: int, own_conversation: bool = False, by: str | None = None
    ) -> None:
        """Store a task; raises Duplicate, NotFound (its conversation), Conflict (quota, tree).

        ``own_conversation``: its conversation is made with it, temporary and its own, and goes with it. A
        conversation at its quota loses its oldest completed task first, if it has one. ``by``: the
        conversation in whose run it is made; where that is a task's run, the new one joins that task's tree,
        which is bounded (``task_endings.LARGEST_TREE``, ``DEEPEST_TREE``).
        """
        ...

    async def get(self, task_id: str, *, owner: str | None) -> Task | None:
        """Return the task if it is the owner's."""
        ...

    async def page(
        self, *, owner: str | None, status: TaskStatus | None, limit: int, cursor: str | None
    ) -> Page[Task]:
        """Return tasks in the order they were made."""
        ...

    async def replace(self, task: Task, *, owner: str | None, expected_revision: int) -> bool:
        """Write an edited task (revision + 1) unless it changed meanwhile (False) or is not the owner's.

        Claims and outcomes change the revision too, so an edit never undoes what they wrote.
        """
        ...

    async def remove(self, task_id: str, *, owner: str | None, by: str | None = None) -> bool:
        """Delete the task and its run log, and have its run cancelled; False if it is not the owner's.

        ``by``: the conversation in whose run it is done; a task's own run completes its task instead, so that
        it can still say what it has to say.
        """
        ...

    async def claim_due(self, *, host: str, now: int, lease_ms: int) -> tuple[Task, TaskRun] | None:
        """Claim the earliest due slot that can run now and move the schedule on, in one transaction.

        Passes over group tasks whose conversation has a running run, and slots that a live claim holds;
        takes over a slot whose claim's lease ran out. Returns the task as it was claimed, or None.
        """
        ...

    async def claim_manual(
        self, task_id: str, *, owner: str | None, host: str, now: int, lease_ms: int
    ) -> tuple[Task, TaskRun]:
        """Claim a slot that leaves the schedule alone; raises NotFound, Conflict ``task_running``."""
        ...

    async def renew_claim(self, claim: TaskRun, lease_ms: int) -> None:
        """Prolong a claim; raises LeaseLost."""
        ...

    async def attach(self, claim: TaskRun, run_id: str, conversation_id: str) -> None:
        """Note which run serves the claim, before that run begins; raises LeaseLost.

        A claim whose owner died is judged by this run: one that never began, or may safely be retried, is
        run again; one that ended has its outcome taken over; an interrupted one ends the slot as an error.
        """
        ...

    async def release(self, claim: TaskRun) -> None:
        """Give an unstarted claim back, as if it had never been made (its slot is due again)."""
        ...

    async def finish(
        self,
        claim: TaskRun,
        *,
        state: TaskRunState,
        result: str | None,
        error: str | None,
        now: int,
    ) -> Sequence[Outbound]:
        """Write the outcome into the claim's own row, with what people are told of it; raises LeaseLost.

        A ``once`` task whose schedule was not edited meanwhile completes, is retried, or fails; another one
        completes when no slot is left. Returns what the conversation of the task was told
        (``task_endings.told``).
        """
        ...

    async def runs(
        self, task_id: str, *, owner: str | None, limit: int, cursor: str | None
    ) -> Page[TaskRun] | None:
        """Return the run log, newest first; None if the task is not the owner's."""
        ...

    async def recover(self, now: int, *, all_but: str) -> int:
        """Let go of the claims that anyone but this owner holds (at a host's start); returns how many."""
        ...

    async def count_due(self, now: int) -> int:
        """Return how many active tasks are due (bounded by an index, at most 10,000 counted)."""
        ...

    async def next_due(self) -> int | None:
        """Return the earliest next_run of all active tasks, or None."""
        ...

    async def metrics(self, now: int) -> TaskMetrics:
        """Return the figures for /metrics."""
        ...

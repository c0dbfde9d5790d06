"""Scheduled tasks as they cross the store's border: frozen, instants in milliseconds (UTC)."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

ScheduleType = Literal["cron", "interval", "once"]
ContextMode = Literal["group", "isolated"]
CatchUp = Literal["skip", "once", "all"]
Deliver = Literal["answer", "none"]


class TaskStatus(StrEnum):
    """Where a scheduled task stands."""

    ACTIVE = "active"
    PAUSED = "paused"
    COMPLETED = "completed"
    FAILED = "failed"


class TaskRunState(StrEnum):
    """Where one slot of a task stands."""

    RUNNING = "running"
    SUCCESS = "success"
    TIMEOUT = "timeout"
    ERROR = "error"
    CANCELLED = "cancelled"
    PAUSED = "paused"


@dataclass(frozen=True, slots=True)
class Task:
    """A scheduled task. ``next_run`` is its next slot, None when there is none.

    ``attempts`` counts the failed tries of a ``once`` task; ``served_slot`` is the newest slot that ended in
    success; ``running`` says that a slot of its schedule is claimed; ``revision`` counts all changes of the
    row, those of claims included. No slot is later than ``ends_at``; of its schedule's slots, ``runs_begun``
    began and at most ``max_runs`` will. ``output_schema``, as JSON: what its answers have to be. A task that
    a task's run made stands ``depth`` floors below the task ``tree_id``, which a person made.
    """

    id: str
    conversation_id: str
    prompt: str
    schedule_type: ScheduleType
    schedule_value: str
    timezone: str
    context_mode: ContextMode
    catch_up: CatchUp
    status: TaskStatus
    next_run: int | None
    attempts: int
    revision: int
    created_at: int
    updated_at: int
    last_run: int | None = None
    last_state: TaskRunState | None = None
    served_slot: int | None = None
    running: bool = False
    deliver: Deliver = "answer"
    ends_at: int | None = None
    max_runs: int | None = None
    output_schema: str | None = None
    runs_begun: int = 0
    tree_id: str | None = None
    depth: int = 0

    def within_bounds(self, slot: int | None) -> int | None:
        """Return the slot if the task's end and its number of runs leave room for it, else None."""
        if slot is None or (self.ends_at is not None and slot > self.ends_at):
            return None
        return None if self.max_runs is not None and self.runs_begun >= self.max_runs else slot


@dataclass(frozen=True, slots=True)
class TaskRun:
    """One slot of a task being run or ended: the row of the run log; ``output`` as JSON."""

    id: str
    task_id: str
    slot: str
    state: TaskRunState
    attempt: int
    fence: int
    owner: str
    started_at: int
    finished_at: int | None
    run_id: str | None
    conversation_id: str | None
    result: str | None
    error: str | None
    output: str | None = None

"""Rows of scheduled tasks and their runs to values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from shared.errors import Conflict
from shared.store.rows import Row
from shared.values import Task, TaskRun, TaskRunState, TaskStatus

FREE: Final = 0
"""``waits``: the task can be claimed when it is due."""
WAITS_FOR_CONVERSATION: Final = 1
"""``waits``: a group task that was passed over; the end of its conversation's run frees it."""
WAITS_FOR_SLOT: Final = 2
"""``waits``: a slot of its schedule is claimed; the end of that claim frees it."""
WAITS_FOR_MANUAL: Final = 3
"""``waits``: a manual run is claimed; the end of that claim frees it."""

MANUAL: Final = "manual-"
"""How the slot of a manual trigger starts; a scheduled one is its due time in milliseconds."""


def check_idle(row: Row) -> None:
    """Raise Conflict ``task_running`` when a run of the task has not ended: it never overlaps itself."""
    if row["waits"] in (WAITS_FOR_SLOT, WAITS_FOR_MANUAL):
        raise Conflict(
            f"Task {row['id']} is running, and a task never overlaps itself; try again when it has ended.",
            code="task_running",
        )


def task(row: Row) -> Task:
    """Read a row of scheduled_tasks."""
    return Task(
        id=row["id"],
        conversation_id=row["conversation_id"],
        prompt=row["prompt"],
        schedule_type=row["schedule_type"],
        schedule_value=row["schedule_value"],
        timezone=row["timezone"],
        context_mode=row["context_mode"],
        catch_up=row["catch_up"],
        status=TaskStatus(row["status"]),
        next_run=row["next_run"],
        attempts=row["attempts"],
        revision=row["revision"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        last_run=row["last_run"],
        last_state=None if row["last_state"] is None else TaskRunState(row["last_state"]),
        served_slot=row["served_slot"],
        running=row["waits"] == WAITS_FOR_SLOT,
        deliver=row["deliver"],
        ends_at=row["ends_at"],
        max_runs=row["max_runs"],
        runs_begun=row["runs_begun"],
        tree_id=row["tree_id"],
        depth=row["depth"],
    )


def task_run(row: Row) -> TaskRun:
    """Read a row of task_runs."""
    return TaskRun(
        id=row["id"],
        task_id=row["task_id"],
        slot=row["slot"],
        state=TaskRunState(row["state"]),
        attempt=row["attempt"],
        fence=row["fence"],
        owner=row["owner"],
        started_at=row["started_at"],
        finished_at=row["finished_at"],
        run_id=row["run_id"],
        conversation_id=row["conversation_id"],
        result=row["result"],
        error=row["error"],
    )


@dataclass(frozen=True, slots=True)
class TaskMetrics:
    """Figures for /metrics: tasks due now, slots running, seconds the oldest due one is late."""

    due: int
    running: int
    overdue_seconds: float

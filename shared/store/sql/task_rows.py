"""Rows of scheduled tasks and their runs to values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from shared.errors import Conflict
from shared.store.contract import Row
from shared.store.rows import optional, reader
from shared.task_values import Task, TaskRun, TaskRunState, TaskStatus

FREE: Final = 0
"""``waits``: the task can be claimed when it is due."""
WAITS_FOR_CONVERSATION: Final = 1
"""``waits``: a group task that was passed over; the end of its conversation's run frees it."""
WAITS_FOR_SLOT: Final = 2
"""``waits``: a slot of its schedule is claimed; the end of that claim frees it."""
WAITS_FOR_MANUAL: Final = 3
"""``waits``: a manual run is claimed; the end of that claim frees it."""
WAITS_FOR_PRINCIPAL: Final = 4
"""``waits``: its principal isn't active; making it so frees its tasks."""

MANUAL: Final = "manual-"
"""How the slot of a manual trigger starts; a scheduled one is its due time in milliseconds."""


def check_idle(row: Row) -> None:
    """Raise Conflict ``task_running`` when a run of the task has not ended: it never overlaps itself."""
    if row["waits"] in (WAITS_FOR_SLOT, WAITS_FOR_MANUAL):
        raise Conflict(
            f"Task {row['id']} is running, and a task never overlaps itself; try again when it has ended.",
            code="task_running",
        )


to_task: Final = reader(
    Task,
    {"running": "waits"},
    status=TaskStatus,
    last_state=optional(TaskRunState),
    running=WAITS_FOR_SLOT.__eq__,
)
to_task_run: Final = reader(TaskRun, state=TaskRunState)


@dataclass(frozen=True, slots=True)
class TaskMetrics:
    """Figures for /metrics: tasks due now, slots running, seconds the oldest due one is late."""

    due: int
    running: int
    overdue_seconds: float

"""Tasks and their runs as JSON shows them, over HTTP and MCP alike."""

from __future__ import annotations

from typing import Any, Literal, NotRequired
from zoneinfo import ZoneInfoNotFoundError

from shared import jsons
from shared.clock import iso, local, now_ms
from shared.schedules import ON_TIME_MS
from shared.shapes import Shape, view
from shared.task_values import (
    CatchUp,
    ContextMode,
    Deliver,
    ScheduleType,
    Task,
    TaskRun,
    TaskRunState,
    TaskStatus,
)


class TaskShape(Shape):
    """A scheduled task."""

    id: str
    conversation_id: str
    prompt: str
    schedule_type: ScheduleType
    schedule_value: str
    timezone: str
    context_mode: ContextMode
    catch_up: CatchUp
    deliver: Deliver
    ends_at: str | None
    max_runs: int | None
    runs_begun: int
    status: TaskStatus
    next_run: str | None
    next_run_local: str | None
    overdue: bool
    created_at: str
    updated_at: str
    last_run: str | None
    last_status: TaskRunState | None
    attempts: int
    output_schema: NotRequired[dict[str, Any] | bool]
    principal_id: NotRequired[str]


def task_view(task: Task) -> TaskShape:
    """Return a task as JSON shows it. ``next_run`` is null unless the task is active; instants are UTC."""
    next_run = task.next_run if task.status is TaskStatus.ACTIVE else None
    schema = {} if task.output_schema is None else {"output_schema": jsons.loads(task.output_schema)}
    return view(
        TaskShape,
        task,
        next_run=next_run,
        next_run_local=None if next_run is None else _shown_local(next_run, task.timezone),
        overdue=next_run is not None and next_run < now_ms() - ON_TIME_MS,
        last_status=task.last_state,
        **schema,
    )


class TaskRunShape(Shape):
    """A row of a task's run log."""

    id: str
    task_id: str
    trigger: Literal["schedule", "manual"]
    due_at: str | None
    status: TaskRunState
    attempt: int
    run_id: str | None
    conversation_id: str | None
    started_at: str
    finished_at: str | None
    duration_ms: int | None
    result: str | None
    output: NotRequired[Any]
    error: str | None


def task_run_view(run: TaskRun) -> TaskRunShape:
    """Return a row of the run log as JSON shows it. ``due_at`` is null for a manual run."""
    scheduled = run.slot.isdigit()
    return view(
        TaskRunShape,
        run,
        trigger="schedule" if scheduled else "manual",
        due_at=int(run.slot) if scheduled else None,
        status=run.state,
        duration_ms=None if run.finished_at is None else max(run.finished_at - run.started_at, 0),
        **({} if run.output is None else {"output": jsons.loads(run.output)}),
    )


def _shown_local(moment: int, timezone: str) -> str:
    try:
        return local(moment, timezone)
    except ZoneInfoNotFoundError:
        return iso(moment)  # the zone is gone since it was stored

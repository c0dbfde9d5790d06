"""Shapes of JSON answers. The host's OpenAPI document is made of them, and type checkers hold whatever writes
such an answer to its fields; at run time it is a plain dictionary.
"""

from functools import cache
from typing import Any, Literal, NamedTuple, NotRequired, TypeVar, cast, get_args, get_origin, get_type_hints
from zoneinfo import ZoneInfoNotFoundError

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

from shared import jsons
from shared.clock import iso, local, now_ms
from shared.schedules import ON_TIME_MS
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


@with_config(ConfigDict(extra="forbid"))
class Shape(TypedDict):
    """An answer's body: exactly these fields."""


class PageShape(Shape):
    """A page of a list; the next one begins at ``next_cursor``."""

    next_cursor: str | None


S = TypeVar("S", bound=Shape)


def view(shape: type[S], value: object, **said: Any) -> S:
    """Return a value in a shape: what is ``said``, and all else that the shape needs by the value's names.

    Where the shape has a text for a number, that is an instant in milliseconds.
    """
    plan = _plan(shape, *said)  # type: ignore[arg-type]  # mypy takes no class for hashable
    shown = plan.order | {name: getattr(value, name) for name in plan.taken} | said
    for name in plan.texts:
        if isinstance(shown.get(name), int):
            shown[name] = iso(shown[name])
    for name in plan.lists:
        shown[name] = list(shown[name])
    return cast(S, shown)


class _Plan(NamedTuple):
    order: dict[str, Any]
    taken: list[str]
    texts: list[str]
    lists: list[str]


@cache
def _plan(shape: Any, *said: str) -> _Plan:
    hints = get_type_hints(shape, include_extras=True)
    needed = [name for name, hint in hints.items() if get_origin(hint) is not NotRequired]
    texts = [name for name, hint in hints.items() if str in (hint, *get_args(hint))]
    lists = [name for name in needed if get_origin(hints[name]) is list]
    return _Plan(dict.fromkeys(needed), [name for name in needed if name not in said], texts, lists)


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

"""What may be said of a task, and what becomes of one that is edited: checked, and without the store.

Whatever isn't right raises InvalidInput with the field's name, or Conflict.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, get_args

from shared import schedules
from shared.clock import iso, local
from shared.errors import Conflict, InvalidInput
from shared.ids import TASK, new_id
from shared.schedules import Schedule
from shared.task_values import CatchUp, ContextMode, Deliver, Task, TaskStatus

LONGEST_PROMPT: Final = 32_000
"""Characters of a prompt."""
ID: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}", re.ASCII)
"""A task's id; ``.`` and ``..`` are none, since clients cut them out of addresses."""
PLAIN: Final = ("prompt", "context_mode", "catch_up", "deliver", "max_runs", "output_schema")
"""Fields whose values are right or wrong by themselves."""
FIELDS: Final = (*PLAIN, "schedule_type", "schedule_value", "timezone", "ends_at", "status", "run_if_past")
"""What ``update`` can change."""
CHOICES: Final[Mapping[str, Sequence[str]]] = {
    "context_mode": get_args(ContextMode),
    "catch_up": get_args(CatchUp),
    "deliver": get_args(Deliver),
    "status": tuple(TaskStatus),
}

MOST_RUNS: Final = 1_000_000


def edited(task: Task, fields: Mapping[str, Any], now: int, default_timezone: str) -> Task:
    """Return the task with the given fields; the next slot is computed anew for a new schedule or state."""
    for name in fields:
        if name not in FIELDS:
            raise InvalidInput(f"{name}: cannot be changed; known fields are {', '.join(FIELDS)}")
    changed = replace(task, **{name: checked(name, fields[name]) for name in PLAIN if name in fields})
    wanted = TaskStatus(checked("status", fields.get("status", task.status)))
    schedule = parsed(
        fields.get("schedule_type", task.schedule_type),
        fields.get("schedule_value", task.schedule_value),
        fields.get("timezone", task.timezone),
        default_timezone,
    )
    if "ends_at" in fields:
        changed = replace(changed, ends_at=checked_ends_at(fields["ends_at"], schedule.timezone, now))
    at_once = bool(fields.get("run_if_past"))
    if schedule != Schedule(task.schedule_type, task.schedule_value, task.timezone):
        slot = first_slot(schedule, now, run_if_past=at_once)
        if slot is not None and schedule.type == "once":
            # The time itself may be a slot that ran, before the schedule was another one.
            slot = max(slot, now)
        changed = _rescheduled(changed, schedule, slot)
    elif at_once and schedule.type == "once" and task.status is TaskStatus.COMPLETED:
        raise _completed(task)
    if (changed.ends_at, changed.max_runs) != (task.ends_at, task.max_runs):
        changed = _rebounded(changed, schedule, now)
    return _with_status(changed, wanted, now) if "status" in fields else changed


def parsed(schedule_type: object, schedule_value: object, timezone: object, default: str) -> Schedule:
    """Return a schedule, in the default zone where none is given."""
    return schedules.parse(
        _text("schedule_type", schedule_type),
        _text("schedule_value", schedule_value),
        _text("timezone", default if timezone is None else timezone),
    )


def first_slot(schedule: Schedule, now: int, *, run_if_past: bool) -> int | None:
    """Return the first slot of a schedule that starts now; a ``once`` time that has passed is refused."""
    slot = schedules.first_slot(schedule, now)
    if schedule.type == "once" and slot is not None and slot < now and not run_if_past:
        present = local(now, schedule.timezone)
        raise InvalidInput(
            f"schedule_value: {schedule.value!r} is past: now it is {present}; "
            "give a later time, or run_if_past: true to run the task at once"
        )
    return slot


def _rebounded(task: Task, schedule: Schedule, now: int) -> Task:
    """Return the task after its end or its number of runs was changed: it may end by it, or go on again."""
    slot = task.next_run
    if slot is None and schedule.type != "once":
        slot = schedules.first_slot(schedule, now)
    slot = task.within_bounds(slot)
    status = task.status
    if slot is None and status is TaskStatus.ACTIVE and not task.running:
        status = TaskStatus.COMPLETED
    elif slot is not None and status is TaskStatus.COMPLETED:
        status = TaskStatus.ACTIVE
    return replace(task, next_run=slot, status=status)


def _rescheduled(task: Task, schedule: Schedule, slot: int | None) -> Task:
    """Give the task a new schedule, as if it had just been made with it; a paused one stays paused."""
    edited = replace(
        task,
        schedule_type=schedule.type,
        schedule_value=schedule.value,
        timezone=schedule.timezone,
        next_run=slot,
        attempts=0,
        runs_begun=0,
        served_slot=None,
        status=TaskStatus.PAUSED if task.status is TaskStatus.PAUSED else TaskStatus.ACTIVE,
    )
    check_room(edited)
    return edited


def check_room(task: Task) -> None:
    """Raise InvalidInput when a new schedule has no slot before its end."""
    if task.next_run is not None and task.within_bounds(task.next_run) is None:
        first = local(task.next_run, task.timezone)
        raise InvalidInput(f"ends_at: lies before the first run, which would be at {first}")


def _with_status(task: Task, wanted: TaskStatus, now: int) -> Task:
    if wanted is task.status:
        return task
    if wanted is TaskStatus.ACTIVE:
        return _resumed(task, now)
    if wanted is TaskStatus.PAUSED:
        if task.status is not TaskStatus.ACTIVE:
            raise Conflict(f"Task {task.id} is {task.status}; only an active task can be paused.")
        return replace(task, status=TaskStatus.PAUSED)
    if wanted is TaskStatus.COMPLETED:
        return replace(task, status=TaskStatus.COMPLETED, next_run=None)
    raise InvalidInput("status: can be set to active, paused or completed; failed is an outcome")


def _resumed(task: Task, now: int) -> Task:
    if task.schedule_type == "once" and (task.served_slot is not None or task.status is TaskStatus.COMPLETED):
        raise _completed(task)
    schedule = schedules.parse(task.schedule_type, task.schedule_value, task.timezone)
    slot = schedules.first_slot(schedule, now)
    if schedule.type == "once" and slot is not None:
        # Its own time may have been tried before; the present is a slot that never was. While a try is
        # running there is no slot: its outcome decides.
        slot = None if task.running else max(slot, now)
    if slot is not None and task.within_bounds(slot) is None:
        raise Conflict(
            f"Task {task.id} has ended. Give it a later ends_at or more max_runs to go on.",
            code="task_completed",
        )
    return replace(task, status=TaskStatus.ACTIVE, next_run=slot, attempts=0)


def _completed(task: Task) -> Conflict:
    ran = f": it ran at {iso(task.last_run)}" if task.last_run else ""
    return Conflict(
        f"Task {task.id} is completed{ran}. Give it a new schedule_value to run it again.",
        code="task_completed",
    )


def checked_id(given: str | None) -> str:
    """Return the given id, or a new one."""
    if given is None:
        return new_id(TASK)
    if not ID.fullmatch(_text("id", given)):
        raise InvalidInput("id: takes 1 to 128 letters, digits, dots, dashes and underscores, no dot first")
    return given


def checked(name: str, value: object) -> Any:
    """Return the value of one of ``PLAIN`` or a status."""
    if name in CHOICES:
        if value not in CHOICES[name]:
            raise InvalidInput(f"{name}: must be one of {', '.join(CHOICES[name])}")
        return value
    if name == "prompt":
        return _checked_prompt(value)
    is_count = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MOST_RUNS
    if name == "max_runs" and value is not None and not is_count:
        raise InvalidInput(f"max_runs: must be a whole number from 1 to {MOST_RUNS}")
    return value


def _checked_prompt(prompt: object) -> str:
    text = _text("prompt", prompt)
    if not text.strip():
        raise InvalidInput("prompt: must not be blank")
    if len(text) > LONGEST_PROMPT:
        raise InvalidInput(f"prompt: must have at most {LONGEST_PROMPT} characters, has {len(text)}")
    return text


def checked_ends_at(value: object, timezone: str, now: int) -> int | None:
    """Return the end in milliseconds since the epoch, None for none."""
    if value is None:
        return None
    end = schedules.instant(_text("ends_at", value), timezone)
    if end is None:
        raise InvalidInput(f"ends_at: takes {schedules.ONCE_EXAMPLE}, or a time with its offset")
    if end < now:
        raise InvalidInput(f"ends_at: is past: now it is {local(now, timezone)}")
    return end


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise InvalidInput(f"{name}: must be a string")
    return value

"""Scheduled tasks as one service, used alike by the HTTP API, the MCP tools and the command line.

``owner`` is the conversation a caller acts for; None is a caller who may act for any (the HTTP API, the main
conversation). Everything is checked before anything is written. Callers make a change durable before they
acknowledge it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Literal, cast, get_args

import anyio

from shared import schedules
from shared.catch_up import ON_TIME_MS, CatchUp
from shared.clock import iso, iso_or_none, now_ms
from shared.errors import Conflict, InvalidInput, NoConversation, NotFound
from shared.ids import CONVERSATION, TASK, new_id
from shared.schedules import Schedule
from shared.shapes import Shape
from shared.store.sql.task_outcomes import BACKOFF_MS
from shared.store.store import Store
from shared.values import Page, Task, TaskRun, TaskRunState, TaskStatus

LONGEST_PROMPT: Final = 32_000
"""Characters of a prompt."""

DEFAULT_QUOTA: Final = 100
"""Tasks that one conversation may own (MAX_TASKS_PER_CONVERSATION)."""

LARGEST_PAGE: Final = 1000
LOOKED_AT_ONCE: Final = 50
"""Tasks whose slots are looked at before others have their turn on the event loop: some milliseconds."""
MOST_EXPLAINED: Final = 100
EDITS: Final = 20
"""How often an edit starts over because the task changed meanwhile."""

FOREIGN: Final = "Task not found or access denied."
"""The one answer for an absent and for a foreign task."""

ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}", re.ASCII)
FIELDS: Final = (
    "prompt",
    "schedule_type",
    "schedule_value",
    "timezone",
    "context_mode",
    "catch_up",
    "deliver",
    "ends_at",
    "max_runs",
    "status",
    "run_if_past",
)
"""What ``update`` can change."""

MOST_RUNS: Final = 1_000_000

ContextMode = Literal["group", "isolated"]
Deliver = Literal["answer", "none"]


class TaskService:
    """Makes, changes and lists tasks; raises InvalidInput, NotFound, Conflict and Duplicate.

    ``acting``: the conversation in whose runs it is used, fixed at birth; a task's run may add and end less.
    """

    def __init__(
        self,
        store: Store,
        *,
        default_timezone: str,
        quota: int = DEFAULT_QUOTA,
        acting: str | None = None,
    ) -> None:
        schedules.zone(default_timezone)
        self._acting = acting
        self._store = store
        self._default_timezone = default_timezone
        self._quota = quota

    async def schedule(
        self,
        *,
        owner: str | None,
        conversation_id: str | None,
        prompt: str,
        schedule_type: str,
        schedule_value: str,
        timezone: str | None = None,
        context_mode: str = "isolated",
        catch_up: str = "once",
        deliver: str = "answer",
        ends_at: str | None = None,
        max_runs: int | None = None,
        run_if_past: bool = False,
        id: str | None = None,
        now: int | None = None,
    ) -> Task:
        """Make a task for an existing conversation, or (without owner and conversation) one of its own.

        ``run_if_past``: a ``once`` time that has passed is due at once, instead of being refused.
        """
        moment = now_ms() if now is None else now
        schedule = self._parse(schedule_type, schedule_value, timezone)
        task = Task(
            id=_checked_id(id),
            conversation_id="",
            prompt=_checked_prompt(prompt),
            schedule_type=schedule.type,
            schedule_value=schedule.value,
            timezone=schedule.timezone,
            context_mode=_context_mode(context_mode),
            catch_up=_catch_up(catch_up),
            status=TaskStatus.ACTIVE,
            next_run=_first_slot(schedule, moment, run_if_past=run_if_past),
            attempts=0,
            revision=0,
            created_at=moment,
            updated_at=moment,
            deliver=_deliver(deliver),
            ends_at=_ends_at(ends_at, schedule.timezone, moment),
            max_runs=_max_runs(max_runs),
        )
        _check_room(task)
        home = await self._home(owner, conversation_id, task.context_mode)
        task = replace(task, conversation_id=home or new_id(CONVERSATION))
        await self._store.tasks.add(task, quota=self._quota, own_conversation=home is None, by=self._acting)
        return task

    async def get(self, task_id: str, owner: str | None) -> Task:
        """Return the task; raises NotFound."""
        task = await self._store.tasks.get(task_id, owner=owner)
        if task is None:
            raise NotFound(FOREIGN)
        return task

    async def list(
        self,
        owner: str | None,
        *,
        status: str | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page[Task]:
        """Return tasks in the order they were made."""
        wanted = None if status is None else _status(status)
        return await self._store.tasks.page(
            owner=owner, status=wanted, limit=_checked_limit(limit), cursor=cursor
        )

    async def update(
        self, task_id: str, owner: str | None, fields: Mapping[str, Any], *, now: int | None = None
    ) -> Task:
        """Change the given fields; the next slot is recomputed only for a new schedule or a resumed task."""
        moment = now_ms() if now is None else now
        for _ in range(EDITS):
            task = await self.get(task_id, owner)
            edited = self._edited(task, fields, moment)
            if edited.context_mode == "group" and task.context_mode != "group":
                await self._home(None, task.conversation_id, "group")
            if edited == task:
                return task
            edited = replace(edited, updated_at=moment)
            if await self._store.tasks.replace(edited, owner=owner, expected_revision=task.revision):
                return await self.get(task_id, owner)
        raise Conflict(f"Task {task_id} keeps changing; try again.")

    async def pause(self, task_id: str, owner: str | None, *, now: int | None = None) -> Task:
        """Stop the schedule until it is resumed; what runs now goes on. Pausing twice is no error."""
        return await self.update(task_id, owner, {"status": "paused"}, now=now)

    async def resume(self, task_id: str, owner: str | None, *, now: int | None = None) -> Task:
        """Start the schedule again from now; raises Conflict for a ``once`` task that ran."""
        return await self.update(task_id, owner, {"status": "active"}, now=now)

    async def cancel(self, task_id: str, owner: str | None) -> None:
        """Delete the task and its run log, and have its run cancelled; raises NotFound.

        A task that its own run cancels is completed instead.
        """
        if not await self._store.tasks.remove(task_id, owner=owner, by=self._acting):
            raise NotFound(FOREIGN)

    async def runs(
        self, task_id: str, owner: str | None, *, limit: int = 100, cursor: str | None = None
    ) -> Page[TaskRun]:
        """Return the run log, newest first; raises NotFound."""
        page = await self._store.tasks.runs(task_id, owner=owner, limit=_checked_limit(limit), cursor=cursor)
        if page is None:
            raise NotFound(FOREIGN)
        return page

    async def plan_anew(self, now: int) -> Sequence[str]:
        """Plan the tasks whose next slot is later than any that their schedule has ahead; return their ids.

        They were planned while the wall clock was ahead. Hosts' clocks may differ by ``ON_TIME_MS``.
        """
        planned = []
        cursor = None
        while True:
            page = await self._store.tasks.page(
                owner=None, status=TaskStatus.ACTIVE, limit=LOOKED_AT_ONCE, cursor=cursor
            )
            for task in page.items:
                edited = _planned_anew(task, now)
                if edited is not None and await self._store.tasks.replace(
                    edited, owner=None, expected_revision=task.revision
                ):
                    planned.append(task.id)
            cursor = page.next_cursor
            if cursor is None:
                return planned
            await anyio.sleep(0.01)

    def explain(
        self,
        schedule_type: str,
        schedule_value: str,
        timezone: str | None = None,
        *,
        n: int = 5,
        now: int | None = None,
    ) -> Sequence[int]:
        """Return the next ``n`` slots of a schedule that starts now, in milliseconds since the epoch."""
        schedule = self._parse(schedule_type, schedule_value, timezone)
        moment = now_ms() if now is None else now
        return schedules.upcoming(schedule, moment, min(n, MOST_EXPLAINED))

    def _parse(self, schedule_type: object, schedule_value: object, timezone: object) -> Schedule:
        place = self._default_timezone if timezone is None else timezone
        return schedules.parse(
            _text("schedule_type", schedule_type),
            _text("schedule_value", schedule_value),
            _text("timezone", place),
        )

    async def _home(self, owner: str | None, conversation_id: str | None, mode: str) -> str | None:
        """Return the conversation that will own the task; None: it gets one of its own."""
        wanted = conversation_id or owner
        if wanted is None:
            if mode == "group":
                raise InvalidInput("conversation_id: context_mode group needs an existing conversation")
            return None
        found = await self._store.conversations.get(wanted)
        # One sentence for absent and foreign, so that nobody learns which conversations exist.
        if found is None or owner not in (None, wanted):
            raise NoConversation(wanted)
        if mode == "group" and found.temporary:
            raise InvalidInput("context_mode: group needs a conversation that is not temporary")
        # What an isolated run schedules belongs to whom the run works for.
        return found.owner_id

    def _edited(self, task: Task, fields: Mapping[str, Any], now: int) -> Task:
        for name in fields:
            if name not in FIELDS:
                raise InvalidInput(f"{name}: cannot be changed; known fields are {', '.join(FIELDS)}")
        edited = replace(
            task,
            prompt=_checked_prompt(fields.get("prompt", task.prompt)),
            context_mode=_context_mode(fields.get("context_mode", task.context_mode)),
            catch_up=_catch_up(fields.get("catch_up", task.catch_up)),
            deliver=_deliver(fields.get("deliver", task.deliver)),
            max_runs=_max_runs(fields.get("max_runs", task.max_runs)),
        )
        wanted = _status(fields.get("status", task.status))
        schedule = self._parse(
            fields.get("schedule_type", task.schedule_type),
            fields.get("schedule_value", task.schedule_value),
            fields.get("timezone", task.timezone),
        )
        if "ends_at" in fields:
            edited = replace(edited, ends_at=_ends_at(fields["ends_at"], schedule.timezone, now))
        if schedule != Schedule(task.schedule_type, task.schedule_value, task.timezone):
            slot = _first_slot(schedule, now, run_if_past=bool(fields.get("run_if_past")))
            edited = _rescheduled(edited, schedule, slot)
        if (edited.ends_at, edited.max_runs) != (task.ends_at, task.max_runs):
            edited = _rebounded(edited, schedule, now)
        return _with_status(edited, wanted, now) if "status" in fields else edited


class TaskShape(Shape):
    """A scheduled task."""

    id: str
    conversation_id: str
    prompt: str
    schedule_type: Literal["cron", "interval", "once"]
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


def task_view(task: Task) -> TaskShape:
    """Return a task as JSON shows it. ``next_run`` is null unless the task is active; instants are UTC."""
    next_run = task.next_run if task.status is TaskStatus.ACTIVE else None
    return {
        "id": task.id,
        "conversation_id": task.conversation_id,
        "prompt": task.prompt,
        "schedule_type": task.schedule_type,
        "schedule_value": task.schedule_value,
        "timezone": task.timezone,
        "context_mode": task.context_mode,
        "catch_up": task.catch_up,
        "status": task.status,
        "deliver": task.deliver,
        "ends_at": iso_or_none(task.ends_at),
        "max_runs": task.max_runs,
        "runs_begun": task.runs_begun,
        "next_run": iso_or_none(next_run),
        "next_run_local": None if next_run is None else _shown_local(next_run, task.timezone),
        "overdue": next_run is not None and next_run < now_ms() - ON_TIME_MS,
        "created_at": iso(task.created_at),
        "updated_at": iso(task.updated_at),
        "last_run": iso_or_none(task.last_run),
        "last_status": task.last_state,
        "attempts": task.attempts,
    }


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
    error: str | None


def task_run_view(run: TaskRun) -> TaskRunShape:
    """Return a row of the run log as JSON shows it. ``due_at`` is null for a manual run."""
    scheduled = run.slot.isdigit()
    return {
        "id": run.id,
        "task_id": run.task_id,
        "trigger": "schedule" if scheduled else "manual",
        "due_at": iso(int(run.slot)) if scheduled else None,
        "status": run.state,
        "attempt": run.attempt,
        "run_id": run.run_id,
        "conversation_id": run.conversation_id,
        "started_at": iso(run.started_at),
        "finished_at": iso_or_none(run.finished_at),
        "duration_ms": None if run.finished_at is None else max(run.finished_at - run.started_at, 0),
        "result": run.result,
        "error": run.error,
    }


def _shown_local(moment: int, timezone: str) -> str:
    try:
        return schedules.local(moment, timezone)
    except InvalidInput:
        return iso(moment)  # the zone is gone since it was stored


def _first_slot(schedule: Schedule, now: int, *, run_if_past: bool) -> int | None:
    slot = schedules.first_slot(schedule, now)
    if schedule.type == "once" and slot is not None and slot < now and not run_if_past:
        present = schedules.local(now, schedule.timezone)
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
    _check_room(edited)
    return edited


def _check_room(task: Task) -> None:
    """Raise InvalidInput when a new schedule has no slot before its end."""
    if task.next_run is not None and task.within_bounds(task.next_run) is None:
        first = schedules.local(task.next_run, task.timezone)
        raise InvalidInput(f"ends_at: lies before the first run, which would be at {first}")


def _planned_anew(task: Task, now: int) -> Task | None:
    """Return the task with its next slot, None where its slot may stay.

    Of a ``once`` task only another try is planned; its own time is what somebody wished.
    """
    if task.next_run is None or task.next_run <= now or (task.schedule_type == "once" and not task.attempts):
        return None
    if task.schedule_type == "once":
        slot: int | None = now
        latest: int | None = now + ON_TIME_MS + BACKOFF_MS[-1]
    else:
        try:
            schedule = schedules.parse(task.schedule_type, task.schedule_value, task.timezone)
        except InvalidInput:  # its zone is gone since; the claim says so
            return None
        slot, latest = (schedules.slot_after(schedule, at, at) for at in (now, now + ON_TIME_MS))
    if slot is None or latest is None or task.next_run <= latest:
        return None
    return replace(task, next_run=slot, updated_at=now)


def _with_status(task: Task, wanted: TaskStatus, now: int) -> Task:
    if wanted is task.status:
        return task
    if wanted is TaskStatus.ACTIVE:
        return _resumed(task, now)
    if wanted is TaskStatus.PAUSED:
        if task.status is not TaskStatus.ACTIVE:
            raise Conflict(f"Task {task.id} is {task.status}; only an active task can be paused.")
        return replace(task, status=TaskStatus.PAUSED)
    raise InvalidInput("status: can be set to active or paused; the other ones are outcomes")


def _resumed(task: Task, now: int) -> Task:
    if task.schedule_type == "once" and (task.served_slot is not None or task.status is TaskStatus.COMPLETED):
        raise Conflict(
            f"Task {task.id} is completed: it ran at {iso(task.last_run or now)}. "
            "Give it a new schedule_value to run it again.",
            code="task_completed",
        )
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


def _checked_id(given: str | None) -> str:
    if given is None:
        return new_id(TASK)
    if not ID.fullmatch(_text("id", given)):
        raise InvalidInput("id: takes 1 to 128 letters, digits, dots, dashes and underscores")
    return given


def _checked_prompt(prompt: object) -> str:
    text = _text("prompt", prompt)
    if not text.strip():
        raise InvalidInput("prompt: must not be blank")
    if len(text) > LONGEST_PROMPT:
        raise InvalidInput(f"prompt: must have at most {LONGEST_PROMPT} characters, has {len(text)}")
    return text


def _checked_limit(limit: int) -> int:
    if not 1 <= limit <= LARGEST_PAGE:
        raise InvalidInput(f"limit: must be between 1 and {LARGEST_PAGE}")
    return limit


def _context_mode(value: object) -> ContextMode:
    return cast(ContextMode, _one_of("context_mode", value, get_args(ContextMode)))


def _catch_up(value: object) -> CatchUp:
    return cast(CatchUp, _one_of("catch_up", value, get_args(CatchUp)))


def _deliver(value: object) -> Deliver:
    return cast(Deliver, _one_of("deliver", value, get_args(Deliver)))


def _max_runs(value: object) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MOST_RUNS:
        raise InvalidInput(f"max_runs: must be a whole number from 1 to {MOST_RUNS}")
    return value


def _ends_at(value: object, timezone: str, now: int) -> int | None:
    if value is None:
        return None
    end = schedules.instant(_text("ends_at", value), timezone)
    if end is None:
        raise InvalidInput(f"ends_at: takes {schedules.ONCE_EXAMPLE}, or a time with its offset")
    if end < now:
        raise InvalidInput(f"ends_at: is past: now it is {schedules.local(now, timezone)}")
    return end


def _status(value: object) -> TaskStatus:
    return TaskStatus(_one_of("status", value, [status.value for status in TaskStatus]))


def _one_of(name: str, value: object, choices: Sequence[str]) -> str:
    if value not in choices:
        raise InvalidInput(f"{name}: must be one of {', '.join(choices)}")
    return str(value)


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise InvalidInput(f"{name}: must be a string")
    return value

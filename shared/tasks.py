"""Scheduled tasks as one service, used alike by the HTTP API, the MCP tools and the command line.

``reach`` says whose tasks a caller sees and makes. Everything is checked before anything is written. Callers
make a change durable before they acknowledge it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import anyio

from shared import schedules, task_edits
from shared.clock import now_ms
from shared.errors import Conflict, InvalidInput, NoConversation, NotFound
from shared.ids import CONVERSATION, new_id
from shared.principals import EVERYTHING, OPERATOR, Reach
from shared.schedules import ON_TIME_MS
from shared.store.sql.task_rows import BACKOFF_MS
from shared.store.sql.tasks import FOREIGN
from shared.store.store import Store
from shared.task_values import Task, TaskRun, TaskStatus
from shared.values import Page

DEFAULT_QUOTA: Final = 100
"""Tasks that one conversation may own (MAX_TASKS_PER_CONVERSATION)."""

LARGEST_PAGE: Final = 1000
LOOKED_AT_ONCE: Final = 50
"""Tasks whose slots are looked at before others have their turn on the event loop: some milliseconds."""
EDITS: Final = 20
"""How often an edit starts over because the task changed meanwhile."""


class TaskService:
    """Makes, changes and lists tasks; raises InvalidInput, NotFound, Conflict and Duplicate.

    ``acting``: the conversation in whose runs it is used, fixed at birth; a task's run may add and end less.
    """

    def __init__(
        self, store: Store, *, default_timezone: str, quota: int = DEFAULT_QUOTA, acting: str | None = None
    ) -> None:
        schedules.zone(default_timezone)
        self._acting = acting
        self._store = store
        self._default_timezone = default_timezone
        self._quota = quota

    async def schedule(
        self,
        *,
        reach: Reach,
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
        output_schema: str | None = None,
        run_if_past: bool = False,
        id: str | None = None,
        now: int | None = None,
    ) -> Task:
        """Make a task for an existing conversation within reach, or (without any) one of its own.

        ``run_if_past``: a ``once`` time that has passed is due at once, instead of being refused.
        ``output_schema``: JSON that was checked.
        """
        moment = now_ms() if now is None else now
        schedule = task_edits.parsed(schedule_type, schedule_value, timezone, self._default_timezone)
        task = Task(
            id=reach.stored(task_edits.checked_id(id)) if id else task_edits.checked_id(id),
            conversation_id="",
            prompt=task_edits.checked("prompt", prompt),
            schedule_type=schedule.type,
            schedule_value=schedule.value,
            timezone=schedule.timezone,
            context_mode=task_edits.checked("context_mode", context_mode),
            catch_up=task_edits.checked("catch_up", catch_up),
            status=TaskStatus.ACTIVE,
            next_run=task_edits.first_slot(schedule, moment, run_if_past=run_if_past),
            attempts=0,
            revision=0,
            created_at=moment,
            updated_at=moment,
            deliver=task_edits.checked("deliver", deliver),
            ends_at=task_edits.checked_ends_at(ends_at, schedule.timezone, moment),
            max_runs=task_edits.checked("max_runs", max_runs),
            output_schema=output_schema,
        )
        task_edits.check_room(task)
        home = await self._home(reach, conversation_id, task.context_mode)
        task = replace(task, conversation_id=home or new_id(CONVERSATION))
        alone_for = None if home else reach.principal_id or OPERATOR
        await self._store.tasks.add(task, quota=self._quota, alone_for=alone_for, by=self._acting)
        return task

    async def get(self, task_id: str, reach: Reach) -> Task:
        """Return the task; raises NotFound."""
        return NotFound.unless(await self._store.tasks.get(task_id, reach), FOREIGN)

    async def list(
        self, reach: Reach, *, status: str | None = None, limit: int = 100, cursor: str | None = None
    ) -> Page[Task]:
        """Return tasks in the order they were made."""
        wanted = None if status is None else TaskStatus(task_edits.checked("status", status))
        return await self._store.tasks.page(reach, status=wanted, limit=_checked_limit(limit), cursor=cursor)

    async def update(
        self, task_id: str, reach: Reach, fields: Mapping[str, Any], *, now: int | None = None
    ) -> Task:
        """Change the given fields; the next slot is recomputed only for a new schedule or a resumed task."""
        moment = now_ms() if now is None else now
        for _ in range(EDITS):
            task = await self.get(task_id, reach)
            changed = task_edits.edited(task, fields, moment, self._default_timezone)
            if changed.context_mode == "group" and task.context_mode != "group":
                await self._home(EVERYTHING, task.conversation_id, "group")
            if changed == task:
                return task
            changed = replace(changed, updated_at=moment)
            if await self._store.tasks.replace(changed, reach, expected_revision=task.revision):
                return await self.get(task_id, reach)
        raise Conflict(f"Task {task_id} keeps changing; try again.")

    async def pause(self, task_id: str, reach: Reach, *, now: int | None = None) -> Task:
        """Stop the schedule until it is resumed; what runs now goes on. Pausing twice is no error."""
        return await self.update(task_id, reach, {"status": "paused"}, now=now)

    async def resume(self, task_id: str, reach: Reach, *, now: int | None = None) -> Task:
        """Start the schedule again from now; raises Conflict for a ``once`` task that ran."""
        return await self.update(task_id, reach, {"status": "active"}, now=now)

    async def cancel(self, task_id: str, reach: Reach) -> None:
        """Delete the task and its run log, and have its run cancelled; raises NotFound.

        A task that its own run cancels is completed instead.
        """
        if not await self._store.tasks.remove(task_id, reach, by=self._acting):
            raise NotFound(FOREIGN)

    async def runs(
        self, task_id: str, reach: Reach, *, limit: int = 100, cursor: str | None = None
    ) -> Page[TaskRun]:
        """Return the run log, newest first; raises NotFound."""
        page = await self._store.tasks.runs(task_id, reach, limit=_checked_limit(limit), cursor=cursor)
        return NotFound.unless(page, FOREIGN)

    async def plan_anew(self, now: int) -> Sequence[str]:
        """Plan the tasks whose next slot is later than any that their schedule has ahead; return their ids.

        They were planned while the wall clock was ahead. Hosts' clocks may differ by ``ON_TIME_MS``.
        """
        planned = []
        cursor = None
        while True:
            page = await self._store.tasks.page(
                EVERYTHING, status=TaskStatus.ACTIVE, limit=LOOKED_AT_ONCE, cursor=cursor
            )
            for task in page.items:
                anew = _planned_anew(task, now)
                if anew is not None and await self._store.tasks.replace(
                    anew, EVERYTHING, expected_revision=task.revision
                ):
                    planned.append(task.id)
            cursor = page.next_cursor
            if cursor is None:
                return planned
            await anyio.sleep(0.01)

    async def _home(self, reach: Reach, conversation_id: str | None, mode: str) -> str | None:
        """Return the conversation that will own the task; None: it gets one of its own."""
        wanted = conversation_id or reach.conversation_id
        if wanted is None:
            if mode == "group":
                raise InvalidInput("conversation_id: context_mode group needs an existing conversation")
            return None
        found = await self._store.conversations.reach(reach.principal_id, wanted)
        # One sentence for absent and foreign, so that nobody learns which conversations exist.
        if found is None or not reach.holds(found.id, found.principal_id):
            raise NoConversation(wanted)
        if mode == "group" and found.temporary:
            raise InvalidInput("context_mode: group needs a conversation that is not temporary")
        # What an isolated run schedules belongs to whom the run works for.
        return found.owner_id


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


def _checked_limit(limit: int) -> int:
    if not 1 <= limit <= LARGEST_PAGE:
        raise InvalidInput(f"limit: must be between 1 and {LARGEST_PAGE}")
    return limit

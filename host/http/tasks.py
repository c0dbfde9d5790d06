"""Scheduled tasks over HTTP. The rules are in ``shared.tasks``; here are the shapes."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, NotRequired, cast

from pydantic import ConfigDict, Field, StringConstraints
from starlette.requests import Request
from starlette.responses import Response

from host.http.bodies import NOT_BLANK, WHOLE, Body, OutputSchema, Text, id_by, idempotency
from host.http.callers import Caller, caller_of
from host.http.conversations import asked_for, say_whose
from host.http.routing import KEY, OF_CONVERSATION, OF_PRINCIPAL, PAGE, Api, Parameter, operation, page_of
from host.http.runs import accepted
from host.runs.spec import BegunShape, ExecutedShape
from host.runs.task_runs import TaskRunner
from host.schemas import SchemaJudge
from shared import jsons
from shared.clock import now_ms
from shared.errors import Duplicate, Forbidden, InvalidInput
from shared.ids import TASK
from shared.principals import Reach
from shared.shapes import PageShape, Shape, TaskRunShape, TaskShape, task_run_view, task_view
from shared.store.store import Store
from shared.task_edits import ID, LONGEST_PROMPT
from shared.task_values import TaskStatus
from shared.tasks import TaskService
from shared.values import Idempotency

CLEARED: Final = ("ends_at", "max_runs", "output_schema")
"""What PUT takes null for: the task has no end then, or its answers are text."""

FIELDS: Final[Mapping[str, dict[str, Any]]] = {
    "prompt": {"type": "string", "pattern": NOT_BLANK, "maxLength": LONGEST_PROMPT},
    "schedule_type": {"type": "string", "enum": ["cron", "interval", "once"]},
    "schedule_value": {"type": "string"},
    "timezone": {"type": "string", "format": "iana-timezone"},
    "context_mode": {"type": "string", "enum": ["group", "isolated"]},
    "catch_up": {"type": "string", "enum": ["skip", "once", "all"]},
    "deliver": {"type": "string", "enum": ["answer", "none"]},
    "ends_at": {"type": "string", "format": "time-to-come"},
    "max_runs": {"type": "integer", "minimum": 1, "maximum": 1_000_000},
    "status": {"type": "string", "enum": [*TaskStatus]},
}
"""What ``shared.tasks`` takes, for the contract."""
SCHEDULES: Final = {
    "cron": {"format": "cron", "pattern": r"^\s*(@[A-Za-z]+|\S+(\s+\S+){4})\s*$"},
    "interval": {"format": "milliseconds", "pattern": r"^\s*[0-9]{4,}\s*$"},
    "once": {"format": "local-time-to-come", "pattern": r"^\s*[0-9]{4}"},
}


def _described(nullable: Sequence[str], **more: Any) -> ConfigDict:
    def describe(schema: dict[str, Any]) -> None:
        for name in schema["properties"].keys() & FIELDS.keys():
            said = FIELDS[name]
            schema["properties"][name] = {"anyOf": [said, {"type": "null"}]} if name in nullable else said
        schema.update(more)

    return ConfigDict(json_schema_extra=describe)


OF_STATUS: Final = Parameter("status", "Only tasks in this status", tuple(TaskStatus))


class TaskRequest(Body):
    """POST /task. A group's task needs a conversation."""

    model_config = _described(
        ("timezone", "ends_at", "max_runs"),
        allOf=[
            {
                "oneOf": [
                    {"properties": {"schedule_type": {"const": kind}, "schedule_value": written}}
                    for kind, written in SCHEDULES.items()
                ]
            },
            {
                "anyOf": [
                    {"properties": {"context_mode": {"const": "isolated"}}},
                    {
                        "properties": {"conversation_id": {"type": "string", "minLength": 1}},
                        "required": ["conversation_id"],
                    },
                ]
            },
        ],
    )

    id: Annotated[str, StringConstraints(pattern=f"^{ID.pattern}$")] | None = None
    prompt: Text
    schedule_type: Text
    schedule_value: Text
    timezone: Text | None = None
    context_mode: Text = "isolated"
    conversation_id: Text | None = None
    catch_up: Text = "once"
    deliver: Text = "answer"
    ends_at: Text | None = None
    max_runs: Annotated[int, WHOLE] | None = None
    output_schema: OutputSchema = None
    run_if_past: bool = False


class TaskChanges(Body):
    """PUT /task/{id}: only what is given changes."""

    model_config = _described(CLEARED)

    prompt: Text | None = None
    schedule_type: Text | None = None
    schedule_value: Text | None = None
    timezone: Text | None = None
    context_mode: Text | None = None
    catch_up: Text | None = None
    deliver: Text | None = None
    ends_at: Text | None = None
    max_runs: Annotated[int, WHOLE] | None = None
    output_schema: OutputSchema = None
    status: Text | None = None
    run_if_past: bool | None = None


class TriggerRequest(Body):
    """POST /task/trigger."""

    task_id: Text
    background: bool = False


class CheckRequest(Body):
    """POST /task/check."""

    max: Annotated[int, Field(ge=1, le=100), WHOLE] | None = None


class TasksShape(PageShape):
    """A page of tasks."""

    tasks: list[TaskShape]


class TaskRunsShape(PageShape):
    """A page of a task's run log."""

    runs: list[TaskRunShape]


class CheckShape(Shape):
    """What a check ran; ``results`` when ``max`` was given."""

    checked: int
    message: NotRequired[str]
    executed: NotRequired[ExecutedShape]
    remaining: NotRequired[int]
    results: NotRequired[list[ExecutedShape]]


class TasksApi(Api):
    """What is there of tasks."""

    def __init__(self, store: Store, tasks: TaskService, runner: TaskRunner, judge: SchemaJudge) -> None:
        self._judge = judge
        self._store = store
        self._tasks = tasks
        self._runner = runner

    @operation("POST", "/task", scope="tasks", status=201, parameters=[KEY], errors=(404, 409))
    async def create(self, request: Request, body: TaskRequest) -> TaskShape:
        """Make a scheduled task.

        Everything is checked before anything is written.
        """
        key = await idempotency(request)
        kept = await self._store.runs.keyed(key, now_ms()) if key else None
        if kept is not None and kept.body is not None:
            # The first attempt may have been refused because the volume did not take it.
            await self._store.durable()
            return cast(TaskShape, kept.body)
        view = await self._create(body, key, caller_of(request))
        if key is not None:
            await self._store.runs.keep_answer(key, view["id"], 201, dict(view), now_ms())
        await self._store.durable()
        return view

    @operation("GET", "/tasks", scope="tasks", parameters=(*PAGE, OF_CONVERSATION, OF_STATUS, OF_PRINCIPAL))
    async def list(self, request: Request) -> TasksShape:
        """List tasks in the order they were made."""
        page = await self._tasks.list(
            Reach(await asked_for(request, self._store), caller_of(request).listed(request)),
            status=OF_STATUS.text(request),
            **page_of(request),
        )
        shown = list(map(task_view, page.items))
        await say_whose(request, self._store, shown)
        return {"tasks": shown, "next_cursor": page.next_cursor}

    @operation("GET", "/task/{id}", scope="tasks")
    async def get(self, request: Request) -> TaskShape:
        """One task."""
        return task_view(await self._tasks.get(request.path_params["id"], caller_of(request).reach))

    @operation("GET", "/task/{id}/runs", scope="tasks", parameters=PAGE)
    async def runs(self, request: Request) -> TaskRunsShape:
        """A task's run log, newest first."""
        page = await self._tasks.runs(request.path_params["id"], caller_of(request).reach, **page_of(request))
        return {"runs": list(map(task_run_view, page.items)), "next_cursor": page.next_cursor}

    @operation("PUT", "/task/{id}", scope="tasks", errors=(409,))
    async def update(self, request: Request, body: TaskChanges) -> TaskShape:
        """Change what is given."""
        fields = body.model_dump(exclude_unset=True)
        for name, value in fields.items():
            if value is None and name not in CLEARED:
                raise InvalidInput(f"{name}: must not be null; leave it out to keep it")
        await self._hold_schema(fields)
        task = await self._tasks.update(
            request.path_params["id"], caller_of(request).reach, fields=fields, now=now_ms()
        )
        await self._store.durable()
        return task_view(task)

    @operation("DELETE", "/task/{id}", scope="tasks")
    async def delete(self, request: Request) -> None:
        """Delete a task and its run log.

        A run of it is cancelled.
        """
        await self._tasks.cancel(request.path_params["id"], caller_of(request).reach)
        await self._store.durable()

    @operation(
        "POST", "/task/trigger", scope="tasks", parameters=[KEY], also={202: BegunShape}, errors=(404, 409)
    )
    async def trigger(self, request: Request, body: TriggerRequest) -> ExecutedShape | Response:
        """Run a task now, in a slot of its own; with background its end isn't waited for."""
        key, reach = await idempotency(request), caller_of(request).reach
        if body.background:
            return accepted(await self._runner.trigger_in_background(body.task_id, key, reach))
        return await self._runner.trigger(body.task_id, key, reach)

    @operation("POST", "/task/check", scope="tasks")
    async def check(self, request: Request, body: CheckRequest) -> CheckShape:
        """Run one due task, or up to max of them, whosever they are."""
        if not caller_of(request).principal.is_operator:
            raise Forbidden("POST /task/check runs everybody's tasks: it takes a token of the operator's.")
        due = await self._store.tasks.count_due(now_ms())
        # Also when nothing is due: a slot that a dead host holds shows only when somebody tries.
        executed = await self._runner.run_due(body.max or 1)
        if not executed:
            message = "No due tasks" if not due else "Every due task waits for its conversation"
            return {"checked": due, "message": message}
        answer: CheckShape = {
            "checked": max(due, len(executed)),
            "executed": executed[0],
            "remaining": max(due - len(executed), 0),
        }
        if body.max is not None:
            answer["results"] = executed
        return answer

    async def _create(self, body: TaskRequest, key: Idempotency | None, caller: Caller) -> TaskShape:
        task_id = body.id or (id_by(key, TASK) if key else None)
        try:
            asked = body.model_dump(exclude={"id"})
            if body.timezone is None:
                asked["timezone"] = caller.principal.terms.timezone
            await self._hold_schema(asked)
            task = await self._tasks.schedule(reach=caller.reach, id=task_id, now=now_ms(), **asked)
        except Duplicate:
            # The same key a moment ago, or just before a crash: its task is this one.
            made = await self._store.tasks.get(task_id or "", caller.reach) if key and not body.id else None
            if made is None:
                raise
            task = made
        return task_view(task)

    async def _hold_schema(self, fields: dict[str, Any]) -> None:
        """Put a schema into the form in which tasks keep it; raises InvalidInput."""
        schema = fields.get("output_schema")
        if schema is not None:
            await self._judge.require(schema, "output_schema")
            fields["output_schema"] = jsons.dumps(schema)

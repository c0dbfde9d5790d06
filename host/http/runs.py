"""The runs of a conversation over HTTP: listing, reading, cancelling, and following as server-sent events.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import UTC
from typing import Final, Literal, NotRequired, cast

import anyio
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from host.http.auth import last_event
from host.http.bodies import JSON
from host.http.callers import caller_of
from host.http.conversations import asked_for, conversation_of, reached, say_whose
from host.http.routing import OF_CONVERSATION, OF_PRINCIPAL, PAGE, Api, Parameter, operation, page_of
from host.runs.service import RunService
from host.runs.spec import BegunShape, ChatShape, UsageShape
from host.tools.files_and_commands import FileChangedShape
from shared import jsons
from shared.errors import InvalidInput, NotFound, PicoError
from shared.shapes import PageShape, Shape, view
from shared.store.store import Store
from shared.values import Event, Run, RunFilter, RunState

HEARTBEAT_S: Final = 15.0
RETRY: Final = b"retry: 2000\n\n"
HEARTBEAT: Final = b": still here\n\n"
AT_ONCE: Final = 256
"""Events that go out in one piece."""


def frame(event: Event) -> bytes:
    """Return the event's frame: id, event, data on one line."""
    return b"id: %d\nevent: %b\ndata: %b\n\n" % (event.seq, event.name.encode(), jsons.dump_bytes(event.data))


def last_event_id(request: Request) -> int:
    """Return the number after which the caller wants events; raises InvalidInput."""
    text = request.headers.get("last-event-id", "").strip()
    if not text:
        return 0
    if not (text.isascii() and text.isdigit() and len(text) <= 15):
        raise InvalidInput("Last-Event-ID: must be the id of an event of this run")
    return int(text)


async def until_gone(receive: Receive, scope: anyio.CancelScope) -> None:
    """Cancel a scope when whoever asked is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


class FrameStreamResponse:
    """An ASGI response that sends pieces (whole frames) as they come, and comments while none come.

    A slow reader is waited for; what is to come stays where it comes from. A reader who goes away ends the
    response, not what it was reading; ``on_gone`` is told.
    """

    def __init__(
        self,
        pieces: AsyncIterator[bytes],
        *,
        opening: bytes = b"",
        headers: Mapping[str, str] | None = None,
        on_gone: Callable[[], None] | None = None,
        heartbeat_s: float = HEARTBEAT_S,
    ) -> None:
        self._pieces = pieces
        self._opening = opening
        self._headers = dict(headers or {})
        self._on_gone = on_gone
        self._heartbeat_s = heartbeat_s
        self._sending = False
        self._sent_at = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache, no-transform"),
            (b"x-accel-buffering", b"no"),
            *((name.lower().encode(), value.encode()) for name, value in self._headers.items()),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        if scope["method"] == "HEAD":  # its connection is for the next request
            await send({"type": "http.response.body"})
            return
        await self._send(send, self._opening)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._watch, receive, tasks.cancel_scope)
            tasks.start_soon(self._beat, send)
            try:
                async for piece in self._pieces:
                    await self._send(send, piece)
            except PicoError as error:  # what it tells of is gone, or can't be read
                await self._send(send, last_event(error, scope))
            tasks.cancel_scope.cancel()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, send: Send, body: bytes) -> None:
        self._sending = True
        await send({"type": "http.response.body", "body": body, "more_body": True})
        self._sending = False
        self._sent_at = anyio.current_time()

    async def _beat(self, send: Send) -> None:
        """Send a comment after each silence; while a slow reader is waited for there is none."""
        while True:
            await anyio.sleep_until(self._sent_at + self._heartbeat_s)
            if self._sending:
                self._sent_at = anyio.current_time()
            elif anyio.current_time() >= self._sent_at + self._heartbeat_s:
                await self._send(send, HEARTBEAT)

    async def _watch(self, receive: Receive, scope: anyio.CancelScope) -> None:
        await until_gone(receive, scope)
        if self._on_gone is not None:
            self._on_gone()


class EventStreamResponse(FrameStreamResponse):
    """The events of a run. What is there goes out in one piece: a fast model costs one write, not many."""

    def __init__(self, batches: AsyncIterator[Sequence[Event]], *, heartbeat_s: float = HEARTBEAT_S) -> None:
        super().__init__(_framed(batches), opening=RETRY, heartbeat_s=heartbeat_s)


async def _framed(batches: AsyncIterator[Sequence[Event]]) -> AsyncIterator[bytes]:
    async for events in batches:
        for start in range(0, len(events), AT_ONCE):
            yield b"".join(map(frame, events[start : start + AT_ONCE]))


class RunShape(Shape):
    """A run; ``message_id`` is the message that it answers."""

    run_id: str
    root_run_id: str
    previous_run_id: str | None
    next_run_id: str | None
    conversation_id: str
    message_id: str
    status: RunState
    created_at: str
    finished_at: str | None
    duration_ms: int | None
    model: str
    stop_reason: str | None
    usage: UsageShape
    error: str | None
    code: str | None
    files_changed: NotRequired[list[FileChangedShape]]
    principal_id: NotRequired[str]


class OneRunShape(RunShape):
    """A run with its answer, null until it has ended: what ``POST /chat`` answers."""

    answer: ChatShape | None


class RunsShape(PageShape):
    """A page of runs."""

    runs: list[RunShape]


class CancelShape(Shape):
    """A run that is being cancelled."""

    status: Literal["cancelling"]
    conversation_id: str
    run_id: str


STATUS: Final = Parameter("status", "Only those in this status", tuple(RunState))
CODE: Final = Parameter("code", "Only those that ended with this code")
OF_TASK: Final = Parameter("task_id", "Only those in this task's run log")
OF_CHAIN: Final = Parameter("root_run_id", "Only this run and those that continue it")
SINCE: Final = Parameter("since", "Begun then or later", "instant")
UNTIL: Final = Parameter("until", "Begun then or earlier", "instant")
FILTERS: Final = (STATUS, CODE, OF_CONVERSATION, OF_TASK, OF_CHAIN, SINCE, UNTIL, OF_PRINCIPAL)
LONGEST_WAIT_MS: Final = 60_000
WAIT: Final = Parameter(
    "wait_ms", "How long to wait for its end", {"type": "integer", "minimum": 0, "maximum": LONGEST_WAIT_MS}
)
CHAIN: Final = Parameter("chain", "Wait for, and return, the last of the runs that continue it", "flag")
LAST_EVENT: Final = Parameter(
    "Last-Event-ID", "Events after this one", {"type": "string", "pattern": "^[0-9]{0,15}$"}, "header"
)


class RunsApi(Api):
    """What is there of runs."""

    def __init__(self, store: Store, runs: RunService) -> None:
        self._store = store
        self._runs = runs

    @operation("GET", "/chat/{id}/runs", scope="chat", parameters=PAGE)
    async def list(self, request: Request) -> RunsShape:
        """A conversation's runs, newest first."""
        asked = page_of(request)
        conversation = await conversation_of(request, self._store)
        page = await self._store.runs.page(RunFilter(conversation_id=conversation.id), **asked)
        return {"runs": list(map(run_view, page.items)), "next_cursor": page.next_cursor}

    @operation("GET", "/chat/{id}/runs/{run_id}", scope="chat")
    async def get(self, request: Request) -> RunShape:
        """One run."""
        run_id = request.path_params["run_id"]
        run = await self._store.runs.get(await reached(request, self._store), run_id)
        return run_view(NotFound.unless(run, f"run_id not found: {run_id}"))

    @operation("GET", "/chat/{id}/runs/{run_id}/events", scope="chat", parameters=[LAST_EVENT])
    async def events(self, request: Request) -> EventStreamResponse:
        """A run's events, live or after its end."""
        after = last_event_id(request)
        conversation_id, run_id = await reached(request, self._store), request.path_params["run_id"]
        return EventStreamResponse(await self._runs.event_batches(conversation_id, run_id, after=after))

    @operation("POST", "/chat/{id}/cancel", scope="chat", status=202, errors=(409,))
    async def cancel(self, request: Request) -> CancelShape:
        """Stop the conversation's run."""
        conversation = await conversation_of(request, self._store)
        run_id = await self._runs.cancel(conversation.id)
        return {"status": "cancelling", "conversation_id": conversation.id, "run_id": run_id}

    @operation("GET", "/runs", scope="chat", parameters=(*PAGE, *FILTERS))
    async def all(self, request: Request) -> RunsShape:
        """List runs of all conversations, those of isolated tasks too, newest first."""
        page = await self._store.runs.page(await self._filter(request), **page_of(request))
        shown = list(map(run_view, page.items))
        await say_whose(request, self._store, shown)
        return {"runs": shown, "next_cursor": page.next_cursor}

    @operation("GET", "/runs/{run_id}", scope="chat", parameters=(WAIT, CHAIN))
    async def one(self, request: Request) -> OneRunShape:
        """One run and its answer; with wait_ms once it has ended, with chain also what continues it."""
        run, chain = await self._found(request), CHAIN.flag(request)
        wait_ms = WAIT.number(request, 0)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(until_gone, request.receive, tasks.cancel_scope)
            principal_id = caller_of(request).principal.id
            run = await self._runs.waiters.wait(run, wait_ms, chain=chain, principal_id=principal_id)
            tasks.cancel_scope.cancel()
        return {**run_view(run), "answer": cast(ChatShape | None, run.answer)}

    @operation("POST", "/runs/{run_id}/cancel", scope="chat", status=202, errors=(409,))
    async def stop(self, request: Request) -> CancelShape:
        """Stop this run."""
        run = await self._found(request)
        run_id = await self._runs.cancel(run.conversation_id, run.id)
        return {"status": "cancelling", "conversation_id": run.conversation_id, "run_id": run_id}

    async def _found(self, request: Request) -> Run:
        run_id = request.path_params["run_id"]
        run = await self._store.runs.find(run_id, caller_of(request).within)
        return NotFound.unless(run, f"run_id not found: {run_id}")

    async def _filter(self, request: Request) -> RunFilter:
        query = request.query_params
        task_id = query.get(OF_TASK.name)
        task = await self._store.tasks.get(task_id, caller_of(request).reach) if task_id else None
        state = STATUS.text(request)
        return RunFilter(
            principal_id=caller_of(request).listed(request),
            conversation_id=await asked_for(request, self._store),
            task_id=task_id if task is None else task.id,
            root_run_id=query.get(OF_CHAIN.name),
            state=RunState(state) if state else None,
            code=query.get(CODE.name),
            since=SINCE.instant(request, UTC),
            until=UNTIL.instant(request, UTC),
        )


def accepted(begun: BegunShape) -> JSON[BegunShape]:
    """Return the answer of a run in the background."""
    return JSON(begun, status_code=202, headers={"Location": f"/runs/{begun['run_id']}"})


def run_view(run: Run) -> RunShape:
    """Return a run as it leaves the host."""
    answer, ended = run.answer or {}, run.finished_at
    changed = answer.get("files_changed")
    return view(
        RunShape,
        run,
        run_id=run.id,
        status=run.state,
        duration_ms=None if ended is None else max(ended - run.created_at, 0),
        stop_reason=answer.get("stop_reason"),
        usage=run.usage.counts,
        **({"files_changed": changed} if changed else {}),
    )

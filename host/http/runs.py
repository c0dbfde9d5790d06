"""The runs of a conversation over HTTP: listing, reading, following, cancelling."""

from __future__ import annotations

from dataclasses import asdict
from typing import Final, Literal, cast

from starlette.requests import Request

from host.http.bodies import page_of
from host.http.conversations import conversation_of, reached
from host.http.routing import PAGE, Api, Parameter, operation
from host.http.sse import EventStreamResponse, last_event_id
from host.runs.answers import UsageShape
from host.runs.service import RunService
from shared.clock import iso, iso_or_none
from shared.errors import NotFound
from shared.shapes import PageShape, Shape
from shared.store.store import Store
from shared.values import Run, RunState


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


class RunsShape(PageShape):
    """A page of runs."""

    runs: list[RunShape]


class CancelShape(Shape):
    """A run that is being cancelled."""

    status: Literal["cancelling"]
    conversation_id: str
    run_id: str


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
        page = await self._store.runs.page(conversation.id, **asked)
        return {"runs": list(map(run_view, page.items)), "next_cursor": page.next_cursor}

    @operation("GET", "/chat/{id}/runs/{run_id}", scope="chat")
    async def get(self, request: Request) -> RunShape:
        """One run."""
        run_id = request.path_params["run_id"]
        run = await self._store.runs.get(await reached(request, self._store), run_id)
        if run is None:
            raise NotFound(f"run_id not found: {run_id}")
        return run_view(run)

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


def run_view(run: Run) -> RunShape:
    """Return a run as it leaves the host."""
    ended = run.finished_at
    return {
        "run_id": run.id,
        "root_run_id": run.root_run_id,
        "previous_run_id": run.previous_run_id,
        "next_run_id": run.next_run_id,
        "conversation_id": run.conversation_id,
        "message_id": run.message_id,
        "status": run.state,
        "created_at": iso(run.created_at),
        "finished_at": iso_or_none(ended),
        "duration_ms": None if ended is None else max(ended - run.created_at, 0),
        "model": run.model,
        "stop_reason": (run.answer or {}).get("stop_reason"),
        "usage": cast(UsageShape, asdict(run.usage)),
        "error": run.error,
        "code": run.code,
    }

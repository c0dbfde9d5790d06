"""Responses that are stored, as they stand: from the events of their runs, or what is left of those."""

from __future__ import annotations

from typing import Any

from host.http.callers import Caller
from host.http.openai.answers import Answer
from host.http.openai.response_items import Response, ResponseItems
from host.http.openai.response_requests import IGNORED, MESSAGE
from host.runs.service import RunService
from shared.errors import NotFound
from shared.response_values import StoredResponse
from shared.store.store import Store
from shared.values import Event, Run

Item = dict[str, Any]
Read = dict[str, tuple[StoredResponse, list[Item]] | None]
"""Responses that were read, by their ids, each with its output."""


class ResponseReader:
    """Reads responses; one of another principal is not there."""

    def __init__(self, store: Store, runs: RunService, marker: str) -> None:
        self._store = store
        self._runs = runs
        self._marker = marker

    async def stored(self, caller: Caller, response_id: str) -> StoredResponse:
        """Return what is stored of a response; raises NotFound."""
        stored = await self._store.responses.get(response_id, caller.within)
        if stored is None:
            raise gone(response_id)
        return stored

    def begun(self, stored: StoredResponse) -> Response:
        """Return a response before anything was told of it."""
        echo = stored.asked["echo"]
        typed = echo["text"]["format"]["type"] != "text"
        answer = Answer(stored.id, echo["model"], self._marker, typed)
        functions = frozenset(tool["name"] for tool in echo["tools"])
        return Response(stored, ResponseItems(stored.id, answer, functions))

    async def run(self, stored: StoredResponse) -> Run:
        """Return a response's run, or what goes on for it where nobody waits; raises NotFound."""
        run = await self._store.runs.find(stored.run_id, None)
        if run is None:
            raise gone(stored.id)
        if not stored.background or run.code == "client_tool":
            return run
        return await self._runs.waiters.wait(run, 0, chain=True, principal_id=run.principal_id)

    async def now(self, stored: StoredResponse) -> Response:
        """Return a response with what is stored of its run; without events with its outcome alone."""
        run = await self.run(stored)
        response = self.begun(stored)
        response.run = run
        events = await self._store.runs.events(run.id, after=0)
        if run.answer is not None and not any(event.name == "done" for event in events):
            asked = run.answer.get("requests", ())
            told = [("chunk", {"text": run.answer.get("result", "")})] if not events else []
            told += [*(("approval_request", dict(each)) for each in asked), ("done", run.answer)]
            events = [*events, *(Event(0, name, data) for name, data in told)]
        for event in events:
            response.items.take(event)
        return response

    async def item(self, caller: Caller, item_id: str, read: Read) -> tuple[StoredResponse, Item] | None:
        """Return an item by its id, and the response that it is of; None for one that isn't there.

        When a response's events are gone, so are its items; its words are one message then. ``read`` keeps
        what was read for a request, which may refer to many items of a response.
        """
        response_id = item_id.partition("-")[2].rpartition("-")[0]
        if response_id not in read:
            there = await self._store.responses.get(response_id, caller.within)
            read[response_id] = None if there is None else (there, (await self.now(there)).items.output)
        if (found := read[response_id]) is None:
            return None
        stored, output = found
        known = {item["id"]: item for item in (*asked_items(stored), *output)}
        if item_id not in known and not await self._store.runs.events(stored.run_id, after=0):
            said = (item for item in output if item["type"] == MESSAGE and item_id.startswith("msg-"))
            return stored, next(said, {"type": IGNORED[0]})
        return (stored, known[item_id]) if item_id in known else None


def asked_items(stored: StoredResponse) -> list[Item]:
    """Return what a response was asked, as items."""
    return [
        {"id": f"in-{stored.id}-{number}", "status": "completed", **item}
        for number, item in enumerate(stored.asked["items"])
    ]


def gone(response_id: str) -> NotFound:
    """Return the error for a response that isn't there."""
    return NotFound(
        f"There is no response {response_id[:100]}, or not any more.", code="previous_response_not_found"
    )

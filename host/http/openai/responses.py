"""/v1/responses: the agent as a server of Open Responses, for the default mode of OpenAI's clients."""

import dataclasses
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, Final, Literal

import anyio
from starlette.requests import Request
from typing_extensions import TypedDict

from host.http.bodies import JSON, forget_body, idempotency
from host.http.callers import caller_of
from host.http.openai.answers import NO_RETRY, OpenAiErrorShape
from host.http.openai.response_items import Response, ResponseShape
from host.http.openai.response_places import Place, Places, ResponseReader, asked_items
from host.http.openai.response_requests import ResponseRequest
from host.http.openai.routes import OpenAiApi, Turn
from host.http.openai.threads import Thread
from host.http.routing import KEY, Api, Parameter, operation
from host.http.runs import FrameStreamResponse
from host.runs.service import RunService
from host.telemetry import Metrics
from shared.clock import now_ms
from shared.errors import ConversationBusy, InvalidInput, NotRunning, PicoError
from shared.ids import CONVERSATION, new_id
from shared.store.sql.conversation_rows import StoredResponse
from shared.store.store import Store
from shared.values import RunState

STREAM: Final = Parameter("stream", "Its events, live or again", "flag")
AFTER: Final = Parameter(
    "starting_after", "Only events after this sequence number", {"type": "integer", "minimum": 0}
)
ORDER: Final = Parameter("order", "desc, the last item first, if not given", ("asc", "desc"))
AFTER_ITEM: Final = Parameter("after", "Only items after this one")
ITEMS: Final = Parameter(
    "limit", "Items on a page; 20 if not given", {"type": "integer", "minimum": 1, "maximum": 100}
)
CANCEL_WAIT_MS: Final = 5000
GONE_WITHIN_S: Final = 60.0
"""How long the conversation of a response that isn't stored may take to be deleted."""


class InputItemsShape(TypedDict):
    """The items of a response's input."""

    object: Literal["list"]
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedShape(TypedDict):
    """A response that was deleted."""

    id: str
    object: Literal["response"]
    deleted: bool


class ResponsesApi(Api):
    """The routes below /v1/responses. ``chat`` puts a request to the agent."""

    def __init__(self, store: Store, runs: RunService, chat: OpenAiApi, counts: Metrics) -> None:
        self._store = store
        self._runs = runs
        self._counts = counts
        self._chat = chat
        self._reader = ResponseReader(store, runs, chat.marker)
        self._places = Places(store, chat.threads, chat.functions, self._reader)

    @operation(
        "POST", "/v1/responses", scope="chat", parameters=(KEY,), errors=(404, 409), error=OpenAiErrorShape
    )
    async def create(
        self, request: Request, body: ResponseRequest
    ) -> JSON[ResponseShape] | FrameStreamResponse:
        """Say something, as OpenAI's clients do by default."""
        self._chat.known(request, body.model)
        chat = body.chat([])
        if chat.output_schema is not None:
            await self._chat.judge.require(chat.output_schema, "text.format.schema")
        place = await self._places.find(request, body)
        thread = place.thread
        spec = await self._chat.spec(chat, thread)
        spec = dataclasses.replace(
            spec,
            show_tool_use=True,
            background=bool(body.background),
            live=bool(body.background or body.stream),
            preface=thread.preface if place.new else spec.preface,
            after=place.after,
            idempotency=await idempotency(request),
        )
        if body.store is False:
            unkept = thread.conversation_id or new_id(CONVERSATION)
            spec = dataclasses.replace(spec, temporary=True, new_conversation_id=unkept, begun_by=unkept)
        if thread.last.role == "user" and thread.last.parts:
            spec = await self._chat.with_files(request, spec, thread.last.parts)
        for item in body.input:
            item.parts.clear()
        forget_body(request)
        try:
            turn = await self._chat.begin(request, chat, thread, spec, field="input")
        except ConversationBusy:
            if place.previous is None or spec.ready:
                raise
            # Two that go on from the same response: this one is the second.
            place = place.forked()
            thread = place.thread
            spec = dataclasses.replace(spec, conversation_id=None, new_conversation_id=thread.new_id)
            turn = await self._chat.begin(request, chat, thread, spec, field="input")
        response = await self._begun(body, place, turn)
        headers = {**turn.headers, **NO_RETRY}
        if body.background:
            if turn.run is None:  # It was asked before: nobody waits for its end this time either.
                return JSON((await self._reader.now(response.stored)).view(), headers=headers)
            await self._runs.background.begun(turn.run)
            self._counts.responses[response.items.state()["status"]] += 1
            return JSON(response.view(), headers=headers)
        pieces = self._told(response, turn, thread)
        if body.stream:
            return FrameStreamResponse(pieces, headers=turn.headers, on_gone=turn.gone)
        async for _ in pieces:
            pass
        return JSON(response.view(), headers=headers)

    @operation("GET", "/v1/responses/{id}", scope="chat", parameters=(STREAM, AFTER), error=OpenAiErrorShape)
    async def get(self, request: Request) -> JSON[ResponseShape] | FrameStreamResponse:
        """A response as it stands; with stream its events."""
        stored = await self._stored(request)
        if STREAM.flag(request):
            after = _after(request.query_params.get(AFTER.name, ""))
            batches = self._reader.batches(stored)
            return FrameStreamResponse(self._reader.begun(stored).frames(batches, after + 1))
        return JSON((await self._reader.now(stored)).view())

    @operation(
        "GET",
        "/v1/responses/{id}/input_items",
        scope="chat",
        parameters=(ORDER, AFTER_ITEM, ITEMS),
        error=OpenAiErrorShape,
    )
    async def input_items(self, request: Request) -> InputItemsShape:
        """What a response was asked, as items."""
        items = asked_items(await self._stored(request))
        if ORDER.text(request) != "asc":
            items.reverse()
        after = AFTER_ITEM.text(request)
        ids = [item["id"] for item in items]
        if after not in (None, *ids):
            raise InvalidInput("after: names no item of this response's input")
        begin = 0 if after is None else ids.index(after) + 1
        page = items[begin : begin + ITEMS.number(request, 20)]
        return {
            "object": "list",
            "data": page,
            "first_id": page[0]["id"] if page else None,
            "last_id": page[-1]["id"] if page else None,
            "has_more": begin + len(page) < len(items),
        }

    @operation("DELETE", "/v1/responses/{id}", scope="chat", status=200, error=OpenAiErrorShape)
    async def delete(self, request: Request) -> DeletedShape:
        """Delete a response, and with the last one of a conversation that it made that one."""
        stored = await self._stored(request)
        running = await self._store.runs.find(stored.run_id, None)
        if running is not None and running.state is RunState.RUNNING:
            raise ConversationBusy(stored.conversation_id)
        if not await self._store.responses.remove(stored):
            await self._runs.delete_conversation(stored.conversation_id)
        await self._store.durable()
        return {"id": stored.id, "object": "response", "deleted": True}

    @operation("POST", "/v1/responses/{id}/cancel", scope="chat", error=OpenAiErrorShape)
    async def cancel(self, request: Request) -> JSON[ResponseShape]:
        """Stop a response in the background."""
        stored = await self._stored(request)
        if not stored.background:
            raise InvalidInput("id: only a response in the background can be cancelled; close its stream")
        [*_, run] = await self._reader.runs(stored)
        try:
            await self._runs.cancel(run.conversation_id, run.id)
        except NotRunning:
            return JSON((await self._reader.now(stored)).view())
        await self._runs.waiters.wait(
            run, CANCEL_WAIT_MS, chain=False, principal_id=caller_of(request).principal.id
        )
        return JSON((await self._reader.now(stored)).view())

    async def _begun(self, body: ResponseRequest, place: Place, turn: Turn) -> Response:
        """Store a response whose run has begun; one that isn't to be stored is only made."""
        echo = body.echo()
        if place.forks:
            echo["metadata"] = {**echo["metadata"], "forked": "true"}
        stored = StoredResponse(
            id=f"resp-{turn.run_id.removeprefix('run-')}",
            conversation_id=turn.conversation_id,
            principal_id=place.thread.principal_id,
            run_id=turn.run_id,
            previous_id=body.previous_response_id,
            made_conversation=place.made,
            background=bool(body.background),
            asked={"echo": echo, "items": [item.view() for item in place.items]},
            created_at=now_ms(),
        )
        if body.store is not False:
            await self._store.responses.add(stored)
            stored = await self._store.responses.get(stored.id, None) or stored
        response = self._reader.begun(stored)
        if turn.run is None:
            response.run = await self._store.runs.find(turn.run_id, None)
        return response

    async def _stored(self, request: Request) -> StoredResponse:
        return await self._reader.stored(caller_of(request), request.path_params["id"])

    async def _told(self, response: Response, turn: Turn, thread: Thread) -> AsyncIterator[bytes]:
        """Yield a new response's frames; one that isn't stored goes with its end, whoever still reads.

        Where the program has calls to carry out, its conversation waits for their results for a while.
        """
        try:
            async for frame in response.frames(turn.events, 0):
                yield frame
        finally:
            self._counts.responses[response.items.state()["status"]] += 1
            if not response.stored.asked["echo"]["store"] and not response.items.answer.calls:
                with anyio.move_on_after(GONE_WITHIN_S, shield=True), suppress(PicoError):
                    if turn.run is not None:
                        await turn.run.ended.wait()
                    await self._runs.delete_conversation(turn.conversation_id)
        if not thread.named and not response.items.answer.fault:
            await self._chat.threads.remember(thread, turn.conversation_id, response.items.answer.message)


def _after(text: str) -> int:
    if not text:
        return -1
    if not (text.isascii() and text.isdigit() and len(text) <= 15):
        raise InvalidInput(f"{AFTER.name}: must be a sequence number")
    return int(text)

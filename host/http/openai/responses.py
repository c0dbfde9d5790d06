"""/v1/responses: the agent as a server of Open Responses, for the default mode of OpenAI's clients."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from typing import Any, Final, Literal

import anyio
from starlette.requests import Request
from typing_extensions import TypedDict

from host.http.bodies import JSON, flag, forget_body, idempotency
from host.http.callers import Caller, caller_of
from host.http.openai.answers import NO_RETRY, Answer, OpenAiErrorShape
from host.http.openai.requests import DoorMessage
from host.http.openai.response_items import Response, ResponseItems, ResponseShape
from host.http.openai.response_requests import Item, ResponseRequest
from host.http.openai.routes import OpenAiApi, Turn
from host.http.openai.threads import INSTRUCTING, Thread, results_in
from host.http.routing import KEY, Api, Parameter, operation
from host.http.sse import FrameStreamResponse
from host.runs.service import RunService
from shared.approval_values import ApprovalStatus
from shared.clock import now_ms
from shared.errors import ConversationBusy, InvalidInput, NoConversation, NotFound, NotRunning, PicoError
from shared.ids import CONVERSATION, new_id
from shared.response_values import StoredResponse
from shared.store.store import Store
from shared.values import Conversation, Event, Run, RunState

STREAM: Final = Parameter("stream", "Its events, live or again", {"type": "boolean"})
AFTER: Final = Parameter(
    "starting_after", "Only events after this sequence number", {"type": "integer", "minimum": 0}
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


@dataclasses.dataclass(frozen=True, slots=True)
class _Place:
    """Where a request goes on. ``new``: all of its messages are; ``made``: for responses alone."""

    thread: Thread
    new: bool
    made: bool
    forked: bool = False


class ResponsesApi(Api):
    """The routes below /v1/responses. ``chat`` puts a request to the agent."""

    def __init__(self, store: Store, runs: RunService, chat: OpenAiApi) -> None:
        self._store = store
        self._runs = runs
        self._chat = chat

    @operation(
        "POST", "/v1/responses", scope="chat", parameters=(KEY,), errors=(404, 409), error=OpenAiErrorShape
    )
    async def create(
        self, request: Request, body: ResponseRequest
    ) -> JSON[ResponseShape] | FrameStreamResponse:
        """Say something, as OpenAI's clients do by default."""
        self._chat.known(request, body.model)
        messages = [each for item in body.input if (each := self._message(item, body)) is not None]
        chat = body.chat([*_instructions(body), *messages])
        if chat.output_schema is not None:
            await self._chat.judge.require(chat.output_schema, "text.format.schema")
        place = await self._place(request, body, chat.messages)
        thread = place.thread
        spec = await self._chat.spec(chat, thread)
        spec = dataclasses.replace(
            spec,
            show_tool_use=True,
            background=bool(body.background),
            live=bool(body.background or body.stream),
            preface=thread.preface if place.new else spec.preface,
            idempotency=await idempotency(request),
        )
        if body.store is False:
            apart = new_id(CONVERSATION)
            spec = dataclasses.replace(spec, temporary=True, new_conversation_id=apart, begun_by=apart)
        if thread.last.role == "user" and thread.last.parts:
            spec = await self._chat.with_files(request, spec, thread.last.parts)
        for item in body.input:
            item.parts.clear()
        forget_body(request)
        try:
            turn = await self._chat.begin(request, chat, thread, spec)
        except ConversationBusy:
            if not body.previous_response_id or spec.ready:
                raise
            # Two that go on from the same response: this one is the second.
            previous = await self._stored(request, body.previous_response_id)
            thread = dataclasses.replace(thread, conversation=await self._fork(previous))
            place = _Place(thread, new=True, made=True, forked=True)
            spec = dataclasses.replace(spec, conversation_id=thread.conversation_id)
            turn = await self._chat.begin(request, chat, thread, spec)
        response = await self._begun(body, place, turn)
        headers = {**turn.headers, **NO_RETRY}
        if body.background and turn.run is not None:
            await self._runs.background.begun(turn.run)
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
        stored = await self._stored(request, request.path_params["id"])
        if flag(request, STREAM.name):
            after = _after(request.query_params.get(AFTER.name, ""))
            events = await self._runs.events(stored.conversation_id, stored.run_id, after=0)
            return FrameStreamResponse(self._response(stored).frames(events, after + 1))
        return JSON((await self._now(stored)).view())

    @operation("GET", "/v1/responses/{id}/input_items", scope="chat", error=OpenAiErrorShape)
    async def input_items(self, request: Request) -> InputItemsShape:
        """What a response was asked, as items."""
        stored = await self._stored(request, request.path_params["id"])
        items = [
            {"id": f"in-{stored.id}-{number}", "status": "completed", **item}
            for number, item in enumerate(stored.asked["items"])
        ]
        ends = (items[0]["id"], items[-1]["id"]) if items else (None, None)
        return {
            "object": "list", "data": items, "first_id": ends[0], "last_id": ends[1], "has_more": False
        }  # fmt: skip

    @operation("DELETE", "/v1/responses/{id}", scope="chat", status=200, error=OpenAiErrorShape)
    async def delete(self, request: Request) -> DeletedShape:
        """Delete a response, and with the last one of a conversation that it made that one."""
        stored = await self._stored(request, request.path_params["id"])
        running = await self._store.runs.find(stored.run_id, None)
        if running is not None and running.state is RunState.RUNNING:
            raise ConversationBusy(stored.conversation_id)
        if await self._store.responses.remove(stored):
            await self._runs.delete_conversation(stored.conversation_id)
        await self._store.durable()
        return {"id": stored.id, "object": "response", "deleted": True}

    @operation("POST", "/v1/responses/{id}/cancel", scope="chat", error=OpenAiErrorShape)
    async def cancel(self, request: Request) -> JSON[ResponseShape]:
        """Stop a response in the background."""
        stored = await self._stored(request, request.path_params["id"])
        if not stored.background:
            raise InvalidInput("id: only a response in the background can be cancelled; close its stream")
        run = await self._run(stored)
        try:
            await self._runs.cancel(run.conversation_id, run.id)
        except NotRunning:
            return JSON((await self._now(stored)).view())
        await self._runs.waiters.wait(
            run, CANCEL_WAIT_MS, chain=False, principal_id=caller_of(request).principal.id
        )
        return JSON((await self._now(stored)).view())

    def _message(self, item: Item, body: ResponseRequest) -> DoorMessage | None:
        return item.told() if body.store is False else item.message()

    async def _place(self, request: Request, body: ResponseRequest, messages: list[DoorMessage]) -> _Place:
        """Return where a request goes on; raises InvalidInput, NotFound."""
        caller = caller_of(request)
        if body.store is False:
            if body.previous_response_id or body.conversation:
                raise InvalidInput("store: must not be false together with what is stored")
            return _Place(_placed(caller, None, messages), new=True, made=True)
        conversation: Conversation | None = None
        made = forked = False
        if body.previous_response_id:
            previous = await self._stored(request, body.previous_response_id)
            conversation = await self._after(previous)
            forked = conversation.id != previous.conversation_id
            made = forked or previous.made_conversation
        elif body.conversation:
            conversation = await self._store.conversations.reach(caller.within, body.conversation)
            if conversation is None:
                raise NoConversation(body.conversation)
        if conversation is None:
            _last(messages)
            thread = await self._chat.threads.find(request, body.chat(messages))
            return _Place(thread, new=False, made=thread.conversation is None)
        thread = _placed(caller, conversation, messages)
        await self._check_outputs(conversation, thread.results)
        return _Place(thread, new=True, made=made, forked=forked)

    async def _check_outputs(self, conversation: Conversation, results: Mapping[str, str]) -> None:
        for each in await self._store.approvals.open_step(conversation.id):
            waits = each.kind == "client_tool" and each.status is ApprovalStatus.PENDING
            if waits and each.id not in results:
                raise InvalidInput(f"input: the output of the call {each.id} ({each.tool}) is missing")

    async def _after(self, stored: StoredResponse) -> Conversation:
        """Return the conversation that goes on after a response: its own, or a new one with what it knew."""
        conversation = await self._store.conversations.get(stored.conversation_id)
        if conversation is None:
            raise _gone(stored.id)
        if conversation.running or not await self._store.responses.is_last(stored):
            return await self._fork(stored)
        return conversation

    async def _fork(self, stored: StoredResponse) -> Conversation:
        forked = new_id(CONVERSATION)
        await self._store.responses.branch(stored, forked, now_ms())
        conversation = await self._store.conversations.get(forked)
        if conversation is None:
            raise _gone(stored.id)
        return conversation

    async def _begun(self, body: ResponseRequest, place: _Place, turn: Turn) -> Response:
        """Store a response whose run has begun; one that isn't to be stored is only made."""
        echo = body.echo()
        if place.forked:
            echo["metadata"] = {**echo["metadata"], "forked": "true"}
        stored = StoredResponse(
            id=f"resp-{turn.run_id.removeprefix('run-')}",
            conversation_id=turn.conversation_id,
            principal_id=place.thread.principal_id,
            run_id=turn.run_id,
            previous_id=body.previous_response_id,
            made_conversation=place.made,
            background=bool(body.background),
            asked={"echo": echo, "items": [item.view() for item in body.input]},
            created_at=now_ms(),
        )
        if body.store is not False:
            await self._store.responses.add(stored)
            stored = await self._store.responses.get(stored.id, None) or stored
        return self._response(stored)

    def _response(self, stored: StoredResponse) -> Response:
        echo = stored.asked["echo"]
        typed = echo["text"]["format"]["type"] != "text"
        answer = Answer(stored.id, echo["model"], self._chat.marker, typed)
        functions = frozenset(tool["name"] for tool in echo["tools"])
        return Response(stored, ResponseItems(stored.id, answer, functions))

    async def _told(self, response: Response, turn: Turn, thread: Thread) -> AsyncIterator[bytes]:
        """Yield a new response's frames; one that isn't stored goes with its end, whoever still reads."""
        try:
            async for frame in response.frames(turn.events, 0):
                yield frame
        finally:
            if not response.stored.asked["echo"]["store"]:
                with anyio.move_on_after(GONE_WITHIN_S, shield=True), suppress(PicoError):
                    if turn.run is not None:
                        await turn.run.ended.wait()
                    await self._runs.delete_conversation(turn.conversation_id)
        if not thread.named and not response.items.answer.fault:
            await self._chat.threads.remember(thread, turn.conversation_id, response.items.answer.message)

    async def _stored(self, request: Request, response_id: str) -> StoredResponse:
        stored = await self._store.responses.get(response_id, caller_of(request).within)
        if stored is None:
            raise _gone(response_id)
        return stored

    async def _run(self, stored: StoredResponse) -> Run:
        """Return a response's run, or what goes on for it where nobody waits."""
        run = await self._store.runs.find(stored.run_id, None)
        if run is None:
            raise _gone(stored.id)
        if not stored.background or run.code == "client_tool":
            return run
        return await self._runs.waiters.wait(run, 0, chain=True, principal_id=run.principal_id)

    async def _now(self, stored: StoredResponse) -> Response:
        """Return a response with what is stored of its run; without events with its outcome alone."""
        run = await self._run(stored)
        response = self._response(stored)
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


def _instructions(body: ResponseRequest) -> list[DoorMessage]:
    return [DoorMessage(role="system", content=body.instructions)] if body.instructions else []


def _placed(caller: Caller, conversation: Conversation | None, messages: list[DoorMessage]) -> Thread:
    """Return the place of a request all of whose messages are new in a conversation; raises InvalidInput."""
    system = "\n\n".join(each.content for each in messages if each.role in INSTRUCTING)
    said = [each for each in messages if each.role not in INSTRUCTING]
    results = results_in(said) if conversation is not None else {}
    last = _last(messages)
    told = tuple(each for each in said[:-1] if each.role != "tool")
    return Thread(conversation, None, True, system, told, last, caller, results)


def _last(messages: list[DoorMessage]) -> DoorMessage:
    """Return what is said now; raises InvalidInput."""
    last = messages[-1] if messages else None
    if (
        last is None
        or last.role not in ("user", "tool")
        or (last.role == "user" and not last.content.strip())
    ):
        raise InvalidInput("input: the last item must be the user's message, not blank, or outputs of calls")
    return last


def _after(text: str) -> int:
    if not text:
        return -1
    if not (text.isascii() and text.isdigit() and len(text) <= 15):
        raise InvalidInput(f"{AFTER.name}: must be a sequence number")
    return int(text)


def _gone(response_id: str) -> NotFound:
    return NotFound(
        f"There is no response {response_id[:100]}, or not any more.", code="previous_response_not_found"
    )

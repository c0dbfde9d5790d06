"""Where a request of /v1/responses goes on, and responses that are stored, as they stand."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Final

import anyio
from starlette.requests import Request

from host.http.callers import Caller, caller_of
from host.http.openai.answers import Answer
from host.http.openai.functions import Functions
from host.http.openai.requests import DoorMessage
from host.http.openai.response_items import Response, ResponseItems
from host.http.openai.response_requests import IGNORED, MESSAGE, OUTPUT, REFERENCE, Item, ResponseRequest
from host.http.openai.threads import INSTRUCTING, NAMING_HEADERS, Thread, Threads, results_in
from host.runs.events import EVENTS_EVERY_S
from host.runs.leases import unended
from host.runs.service import RunService
from shared.approval_values import ApprovalStatus
from shared.errors import InvalidInput, NoConversation, NotFound
from shared.ids import CONVERSATION, new_id
from shared.store.sql.conversation_rows import StoredResponse
from shared.store.store import Store
from shared.values import After, Conversation, Event, Run

Given = dict[str, Any]
"""An item of a response."""
Read = dict[str, tuple[StoredResponse, list[Given]] | None]
"""Responses that were read, by their ids, each with its output."""

ENDS: Final = ("error", "done")
"""The events that tell of a run's end."""


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

    async def runs(self, stored: StoredResponse) -> list[Run]:
        """Return the runs that answer: in the background also those that go on where nobody waits.

        One that was begun again is left out; what is to be begun again runs. Raises NotFound.
        """
        run = await self._store.runs.find(stored.run_id, None)
        if run is None:
            raise gone(stored.id)
        found: list[Run] = []
        for each in await self._runs.waiters.chain(run) if stored.background else [run]:
            found.append(each)
            if each.code == "client_tool":
                break
        return [*(each for each in found[:-1] if each.code != "retryable"), unended(found[-1])]

    async def now(self, stored: StoredResponse) -> Response:
        """Return a response with what is stored of its runs; without events with its outcome alone."""
        response, events = self.begun(stored), list[Event]()
        for run in await self.runs(stored):
            response.run = run
            events += await self._store.runs.events(run.id, after=0)
        told = [(event.name, event.data) for event in events if event.name not in ENDS]
        if run.answer is not None:
            if not told:
                asked = run.answer.get("requests", ())
                told = [("chunk", {"text": run.answer.get("result", "")})]
                told += [("approval_request", dict(each)) for each in asked]
            told.append(("done", run.answer))
        for name, data in told:
            response.items.take(Event(0, name, data))
        return response

    async def batches(self, stored: StoredResponse) -> AsyncIterator[Sequence[Event]]:
        """Yield a response's events to its end, which that of a run that goes on is not."""
        told = set[str]()
        while True:
            runs = await self.runs(stored)
            new = [run for run in runs if run.id not in told]
            for run in new:
                told.add(run.id)
                async for events in await self._runs.event_batches(run.conversation_id, run.id, after=0):
                    yield [event for event in events if event.name not in ENDS]
            if not new and (answer := runs[-1].answer) is not None:
                yield [Event(0, "done", answer)]
                return
            if not new:
                await anyio.sleep(EVENTS_EVERY_S)

    async def item(self, caller: Caller, item_id: str, read: Read) -> tuple[StoredResponse, Given] | None:
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


def asked_items(stored: StoredResponse) -> list[Given]:
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


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """Where a request goes on, and its ``items`` themselves.

    ``new``: all of its messages are; ``made``: for responses alone; ``previous``: after which response.
    """

    thread: Thread
    items: Sequence[Item]
    new: bool
    made: bool
    previous: StoredResponse | None = None

    @property
    def after(self) -> After | None:
        """After what its message is said."""
        if self.previous is None or self.thread.last.role != "user":
            return None
        return After(self.previous.conversation_id, self.previous.run_id)

    @property
    def forks(self) -> bool:
        """Whether it goes on in a conversation of its own."""
        return self.previous is not None and self.thread.new_id is not None

    def forked(self) -> Place:
        """Return the same in a conversation of its own, which knows what was said up to ``previous``."""
        return dataclasses.replace(
            self, thread=dataclasses.replace(self.thread, new_id=new_id(CONVERSATION)), made=True
        )


@dataclasses.dataclass(frozen=True, slots=True)
class _Said:
    """An item that is said now; ``of``: the response that it was read from."""

    item: Item
    of: StoredResponse | None = None


class Places:
    """Finds the places of requests."""

    def __init__(self, store: Store, threads: Threads, functions: Functions, reader: ResponseReader) -> None:
        self._store = store
        self._threads = threads
        self._functions = functions
        self._reader = reader

    async def find(self, request: Request, body: ResponseRequest) -> Place:
        """Return where a request goes on; raises InvalidInput, NotFound."""
        caller = caller_of(request)
        read: Read = {}
        said = [await self._said(caller, number, item, read) for number, item in enumerate(body.input)]
        items = [each.item for each in said]
        if body.store is False:
            return await self._unkept(caller, body, items)
        if body.conversation:
            found = await self._store.conversations.reach(caller.within, body.conversation)
            conversation = NoConversation.unless(found, body.conversation)
            thread = await self._placed(caller, conversation, _new(body, said, conversation.id))
            return Place(thread, items, new=True, made=False)
        previous = None
        if body.previous_response_id:
            previous = await self._reader.stored(caller, body.previous_response_id)
        elif not (body.user or any(map(request.headers.get, NAMING_HEADERS))):
            previous, said = _after_the_last(said)
        if previous is not None:
            return await self._after(caller, previous, items, _new(body, said, previous.conversation_id))
        messages = _new(body, said, None)
        _last(messages)
        thread = await self._threads.find(request, body.chat(messages), "input")
        return Place(thread, items, new=False, made=thread.conversation is None)

    async def _said(self, caller: Caller, number: int, item: Item, read: Read) -> _Said:
        """Return an item, or the one that it refers to; raises InvalidInput."""
        if item.type != REFERENCE:
            return _Said(item)
        found = await self._reader.item(caller, item.id, read)
        if found is None:
            raise InvalidInput(
                f"input.{number}: there is no item {item.id[:100]}, or not any more; send the item itself"
            )
        return _Said(Item.model_validate(found[1]), found[0])

    async def _after(
        self, caller: Caller, previous: StoredResponse, items: Sequence[Item], messages: list[DoorMessage]
    ) -> Place:
        """Return the place after a response: its conversation, or a new one with what it knew."""
        said = _last(messages)
        conversation = await self._store.conversations.get(previous.conversation_id)
        if conversation is None:
            raise gone(previous.id)
        forks = said.role == "user" and (
            conversation.running or not await self._store.responses.is_last(previous)
        )
        thread = await self._placed(caller, conversation, messages, forks=forks)
        place = Place(thread, items, new=True, made=previous.made_conversation, previous=previous)
        return place.forked() if forks else place

    async def _unkept(self, caller: Caller, body: ResponseRequest, items: list[Item]) -> Place:
        """Return the place of a request that isn't stored: where its calls still wait, else a new one."""
        if body.previous_response_id or body.conversation:
            raise InvalidInput("store: must not be false together with what is stored")
        results = {str(item.call_id): item.output for item in items if item.type == OUTPUT}
        calls = [
            call for call in await self._functions.called(caller, reversed(results)) if call.ended_at is None
        ]
        home = await self._store.conversations.get(calls[0].conversation_id) if calls else None
        if home is None or home.begun_by != home.id:
            told = [message for item in items if (message := item.told()) is not None]
            thread = _thread(caller, None, [*_instructions(body), *told], {})
            return Place(thread, items, new=True, made=True)
        # What was said before the calls is known there.
        waiting = {call.id for call in calls}
        first = next(number for number, item in enumerate(items) if item.call_id in waiting)
        messages = [message for item in items[first:] if (message := item.message()) is not None]
        thread = _thread(caller, home, messages, {each: results[each] for each in waiting})
        return Place(thread, items, new=False, made=True)

    async def _placed(
        self, caller: Caller, conversation: Conversation, messages: list[DoorMessage], *, forks: bool = False
    ) -> Thread:
        """Return the place of messages that are all new in a conversation; raises InvalidInput."""
        results = results_in([each for each in messages if each.role not in INSTRUCTING])
        thread = _thread(caller, conversation, messages, results)
        for each in () if forks else await self._store.approvals.open_step(conversation.id):
            waits = each.kind == "client_tool" and each.status is ApprovalStatus.PENDING
            if waits and each.id not in results:
                raise InvalidInput(f"input: the output of the call {each.id} ({each.tool}) is missing")
        return thread


def _after_the_last(said: list[_Said]) -> tuple[StoredResponse | None, list[_Said]]:
    """Return the response that a request's last reference is of, and what is said after that."""
    number = max((number for number, each in enumerate(said) if each.of is not None), default=None)
    if number is None:
        return None, said
    instructing = [each for each in said[:number] if each.item.role in INSTRUCTING]
    return said[number].of, [*instructing, *said[number + 1 :]]


def _new(body: ResponseRequest, said: Sequence[_Said], home: str | None) -> list[DoorMessage]:
    """Return as messages what is said, without what was read from the conversation itself."""
    new = (each.item for each in said if each.of is None or each.of.conversation_id != home)
    return [*_instructions(body), *(told for item in new if (told := item.message()) is not None)]


def _instructions(body: ResponseRequest) -> list[DoorMessage]:
    return [DoorMessage(role="system", content=body.instructions)] if body.instructions else []


def _thread(
    caller: Caller, conversation: Conversation | None, messages: list[DoorMessage], results: Mapping[str, str]
) -> Thread:
    """Return the place of messages; raises InvalidInput."""
    system = "\n\n".join(each.content for each in messages if each.role in INSTRUCTING)
    said = [each for each in messages if each.role not in INSTRUCTING]
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

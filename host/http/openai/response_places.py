"""Where a request of /v1/responses goes on: after a response, in a conversation, in one that isn't kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from starlette.requests import Request

from host.http.callers import Caller, caller_of
from host.http.openai.functions import Functions
from host.http.openai.requests import DoorMessage
from host.http.openai.response_reading import Read, ResponseReader, gone
from host.http.openai.response_requests import OUTPUT, REFERENCE, Item, ResponseRequest
from host.http.openai.threads import INSTRUCTING, NAMING_HEADERS, Thread, Threads, results_in
from shared.approval_values import ApprovalStatus
from shared.clock import now_ms
from shared.errors import InvalidInput, NoConversation
from shared.ids import CONVERSATION, new_id
from shared.response_values import StoredResponse
from shared.store.store import Store
from shared.values import Conversation


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """Where a request goes on, and its ``items`` themselves.

    ``new``: all of its messages are; ``made``: for responses alone; ``previous``: after which response.
    """

    thread: Thread
    items: Sequence[Item]
    new: bool
    made: bool
    forked: bool = False
    previous: StoredResponse | None = None


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
            conversation = await self._store.conversations.reach(caller.within, body.conversation)
            if conversation is None:
                raise NoConversation(body.conversation)
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
        thread = await self._threads.find(request, body.chat(messages))
        return Place(thread, items, new=False, made=thread.conversation is None)

    async def forked(self, place: Place, previous: StoredResponse) -> Place:
        """Return the place of the second of two that go on from the same response."""
        thread = dataclasses.replace(place.thread, conversation=await self._fork(previous))
        return dataclasses.replace(place, thread=thread, made=True, forked=True)

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
        _last(messages)
        conversation = await self._store.conversations.get(previous.conversation_id)
        if conversation is None:
            raise gone(previous.id)
        forked = conversation.running or not await self._store.responses.is_last(previous)
        if forked:
            conversation = await self._fork(previous)
        thread = await self._placed(caller, conversation, messages)
        made = forked or previous.made_conversation
        return Place(thread, items, new=True, made=made, forked=forked, previous=previous)

    async def _fork(self, previous: StoredResponse) -> Conversation:
        forked = new_id(CONVERSATION)
        await self._store.responses.branch(previous, forked, now_ms())
        conversation = await self._store.conversations.get(forked)
        if conversation is None:
            raise gone(previous.id)
        return conversation

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
        self, caller: Caller, conversation: Conversation, messages: list[DoorMessage]
    ) -> Thread:
        """Return the place of messages that are all new in a conversation; raises InvalidInput."""
        results = results_in([each for each in messages if each.role not in INSTRUCTING])
        thread = _thread(caller, conversation, messages, results)
        for each in await self._store.approvals.open_step(conversation.id):
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

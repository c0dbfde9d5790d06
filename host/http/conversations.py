"""Conversations over HTTP: listing, reading, deleting."""

from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal, NotRequired

from pydantic import Field
from starlette.requests import Request

from host.http.bodies import Body, NotBlank
from host.http.callers import caller_of
from host.http.routing import OF_CONVERSATION, OF_PRINCIPAL, PAGE, Api, Parameter, operation, page_of
from host.runs.service import RunService
from shared.clock import iso
from shared.errors import Conflict, NoConversation
from shared.shapes import PageShape, Shape, view
from shared.store.store import Store
from shared.values import Conversation, Message, Role

LONGEST_NAME: Final = 200


class ConversationShape(Shape):
    """A conversation."""

    conversation_id: str
    title: str | None
    session_id: str
    created_at: str
    last_activity: str
    message_count: int
    status: Literal["idle", "running", "waiting"]
    pending: int
    principal_id: NotRequired[str]


class OneConversationShape(ConversationShape):
    """A conversation, and how often its beginning was shortened for the model, the last time when."""

    compactions: int
    compacted_at: str | None


class ConversationsShape(PageShape):
    """A page of conversations."""

    conversations: list[ConversationShape]


class MessageShape(Shape):
    """A message as people see it."""

    id: str
    conversation_id: str
    role: Role
    sender: str
    sender_name: str
    content: str
    created_at: str
    refused: NotRequired[bool]


class MessagesShape(PageShape):
    """A page of messages."""

    conversation_id: str
    messages: list[MessageShape]


SEARCH: Final = Parameter("search", "Only those that have this text in title or messages")
TEMPORARY_TOO: Final = Parameter("include_temporary", "Also the conversations of isolated task runs", "flag")


class ConversationChanges(Body):
    """PATCH /chat/{id}."""

    title: Annotated[NotBlank, Field(max_length=LONGEST_NAME)] | None


class ConversationsApi(Api):
    """What is there of conversations."""

    def __init__(self, store: Store, runs: RunService, main_conversation_id: str) -> None:
        self._store = store
        self._runs = runs
        self._main = main_conversation_id

    @operation("GET", "/chat", scope="chat", parameters=(*PAGE, TEMPORARY_TOO, SEARCH, OF_PRINCIPAL))
    async def list(self, request: Request) -> ConversationsShape:
        """List conversations, newest activity first."""
        search = request.query_params.get("search", "").strip()
        page = await self._store.conversations.page(
            **page_of(request),
            include_temporary=TEMPORARY_TOO.flag(request),
            search=search,
            principal_id=caller_of(request).listed(request),
        )
        pending = await self._store.approvals.pending([each.id for each in page.items])
        shown = [conversation_view(each, pending.get(each.id, 0)) for each in page.items]
        await say_whose(request, self._store, shown)
        return {"conversations": shown, "next_cursor": page.next_cursor}

    @operation("GET", "/chat/{id}", scope="chat")
    async def get(self, request: Request) -> OneConversationShape:
        """One conversation."""
        return await self._one(request)

    async def _one(self, request: Request) -> OneConversationShape:
        conversation = await conversation_of(request, self._store)
        latest = await self._store.compactions.latest(conversation.id)
        pending = await self._store.approvals.pending([conversation.id])
        return {
            **conversation_view(conversation, pending.get(conversation.id, 0)),
            "compactions": latest.number if latest else 0,
            "compacted_at": iso(latest.created_at) if latest else None,
        }

    @operation("PATCH", "/chat/{id}", scope="chat")
    async def change(self, request: Request, body: ConversationChanges) -> OneConversationShape:
        """Give a conversation a title, or take it away."""
        await self._store.conversations.rename(await reached(request, self._store), body.title)
        return await self._one(request)

    @operation("DELETE", "/chat/{id}", scope="chat", errors=(409,))
    async def delete(self, request: Request) -> None:
        """Delete a conversation and all that is its own."""
        conversation = await conversation_of(request, self._store)
        if conversation.id.rpartition("+")[2] == self._main:
            raise Conflict("The main conversation cannot be deleted.", code="main_conversation")
        await self._runs.delete_conversation(conversation.id)

    @operation("GET", "/chat/{id}/messages", scope="chat", parameters=PAGE)
    async def messages(self, request: Request) -> MessagesShape:
        """A conversation's messages in the order they were stored."""
        asked = page_of(request)
        conversation = await conversation_of(request, self._store)
        page = await self._store.conversations.messages(conversation.id, **asked)
        return {
            "conversation_id": conversation.id,
            "messages": list(map(message_view, page.items)),
            "next_cursor": page.next_cursor,
        }


async def conversation_of(request: Request, store: Store) -> Conversation:
    """Return the conversation that a request's path names, within reach; raises NoConversation."""
    conversation_id = request.path_params["id"]
    conversation = await store.conversations.reach(caller_of(request).within, conversation_id)
    return NoConversation.unless(conversation, conversation_id)


async def reached(request: Request, store: Store) -> str:
    """Return the id of the conversation that a request's path names; raises NoConversation.

    Whoever reaches any says the id itself: nothing is asked for then.
    """
    if caller_of(request).within is None:
        return str(request.path_params["id"])
    return (await conversation_of(request, store)).id


async def asked_for(request: Request, store: Store) -> str | None:
    """Return the id of the conversation that a list is narrowed to; of an unknown one what was said."""
    said = request.query_params.get(OF_CONVERSATION.name)
    within = caller_of(request).within
    if said is None or within is None:
        return said
    found = await store.conversations.reach(within, said)
    return said if found is None else found.id


async def say_whose(request: Request, store: Store, items: Sequence[Any]) -> None:
    """Put ``principal_id`` to the items of a list, where the operator asked for others'."""
    wanted = request.query_params.get(OF_PRINCIPAL.name)
    if wanted is None:
        return
    owners = await store.conversations.owners([str(item["conversation_id"]) for item in items])
    for item in items:
        item["principal_id"] = owners.get(item["conversation_id"], wanted)


def conversation_view(conversation: Conversation, pending: int) -> ConversationShape:
    """Return a conversation as it leaves the host; so many requests of it wait for people."""
    status = "running" if conversation.running else "waiting" if pending else "idle"
    return view(
        ConversationShape, conversation, conversation_id=conversation.id, status=status, pending=pending
    )


def message_view(message: Message) -> MessageShape:
    """Return a message as it leaves the host."""
    refused = {"refused": True} if message.refused else {}
    return view(MessageShape, message, content=message.text, **refused)

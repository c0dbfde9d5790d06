"""Which conversation a chat program means: one that it names, else the one whose messages it resends."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import NAMESPACE_URL, uuid5

import anyio
from starlette.requests import Request

from host.http.callers import Caller, caller_of
from host.http.openai.functions import Functions
from host.http.openai.requests import ChatCompletionRequest, DoorMessage
from host.http.routing import Parameter
from shared import jsons, untrusted
from shared.clock import now_ms
from shared.errors import InvalidInput, NoConversation
from shared.ids import CONVERSATION
from shared.store.store import Store
from shared.values import Conversation, Idempotency

NAMING_HEADERS: Final = ("X-Conversation-ID", "X-OpenWebUI-Chat-Id")
"""The second is what Open WebUI sends with ENABLE_FORWARD_USER_INFO_HEADERS."""

LONGEST_NAME: Final = 200
NAMED: Final = Parameter(
    NAMING_HEADERS[0],
    "The conversation: its id, or a name that gets one of its own",
    {"type": "string", "maxLength": LONGEST_NAME},
    "header",
)
ROUTE: Final = "/v1/thread"
"""Where the store's keys remember which conversation stands at which messages; kept for a day."""

CALL_ID: Final = "tool_call_id"
INSTRUCTING: Final = ("system", "developer")


@dataclass(frozen=True, slots=True)
class Thread:
    """A request's place. ``conversation`` None: it is made, as ``new_id`` or by a random id; with both, as a
    branch of that one.

    ``told`` are the messages before the last one; ``named`` says that the caller picked. ``last`` is the
    user's, or that of a function; ``results`` are those of calls that wait for them.
    """

    conversation: Conversation | None
    new_id: str | None
    named: bool
    instructions: str
    told: tuple[DoorMessage, ...]
    last: DoorMessage
    caller: Caller
    results: Mapping[str, str]

    @property
    def said(self) -> tuple[DoorMessage, ...]:
        """What was said up to here, without the results of functions."""
        return (*self.told, self.last) if self.last.role == "user" else self.told

    @property
    def conversation_id(self) -> str | None:
        """The id of the conversation that is there already."""
        return self.conversation.id if self.conversation and self.new_id is None else None

    @property
    def principal_id(self) -> str:
        """Whose it is: the operator reaches anybody's."""
        return self.conversation.principal_id if self.conversation else self.caller.principal.id

    @property
    def preface(self) -> str:
        """What a conversation that is made now has to know before its first message."""
        parts = [_element("program_instructions", self.instructions)] if self.instructions else []
        earlier = [_element(item.role, item.content) for item in self.told if item.content]
        if earlier:
            parts.append("<earlier_messages>\n" + "\n".join(earlier) + "\n</earlier_messages>")
        return "\n".join(parts)


class Threads:
    """Finds conversations for requests, and remembers where unnamed ones stand."""

    def __init__(self, store: Store, functions: Functions) -> None:
        self._store = store
        self._functions = functions
        self._remembering = anyio.Lock()

    async def find(self, request: Request, body: ChatCompletionRequest, field: str = CALL_ID) -> Thread:
        """Return the request's place; raises InvalidInput, which names ``field`` for a call, and NotFound."""
        last = body.messages[-1]
        if last.role not in ("user", "tool"):
            raise InvalidInput(f"messages: the last one must be of role user or tool, not {last.role}")
        if last.role == "user" and not last.content.strip():
            raise InvalidInput("messages: the last one must not be blank")
        told = tuple(item for item in body.messages[:-1] if item.role in ("user", "assistant"))
        system = "\n\n".join(item.content for item in body.messages if item.role in INSTRUCTING)
        caller, results = caller_of(request), results_in(body.messages)
        conversation = await self._waiting(caller, body.messages, results, field)
        if conversation is not None:
            named = any(map(request.headers.get, NAMING_HEADERS)) or bool(body.user)
            return Thread(conversation, None, named, system, told, last, caller, results)
        conversation, new_id, named = await self._pick(request, body.user, system, told)
        return Thread(conversation, new_id, named, system, told, last, caller, {})

    async def _waiting(
        self, caller: Caller, messages: Sequence[DoorMessage], results: Mapping[str, str], field: str
    ) -> Conversation | None:
        """Return the conversation of the last calls if results are all there is to say, or they still wait.

        Raises InvalidInput for results of calls that aren't there.
        """
        ids = {**dict.fromkeys(results), **dict.fromkeys(_last_calls(messages))}
        calls = await self._functions.called(caller, ids)
        if messages[-1].role == "user":
            calls = [call for call in calls if call.ended_at is None]
        elif not calls:
            raise InvalidInput(f"{field}: there is no call {messages[-1].tool_call_id}")
        return await self._get(caller, calls[0].conversation_id) if calls else None

    async def remember(self, thread: Thread, conversation_id: str, answer: DoorMessage) -> None:
        """Let the messages up to this answer stand for the conversation, unless they do for another one.

        Two conversations that read alike may differ in what tools have shown them, so neither is found then.
        """
        if thread.named:
            return
        key = _key(thread.caller, thread.instructions, (*thread.said, answer))
        async with self._remembering:
            conversation = await self._store.conversations.get(conversation_id)
            known = await self._store.runs.keyed(key, now_ms())
            if conversation is None:
                return
            subject = conversation_id if known is None or known.subject == conversation_id else ""
            body = {"conversation_id": subject or None, "message_count": conversation.message_count}
            await self._store.runs.keep_answer(key, subject, 200, body, now_ms())

    async def _pick(
        self, request: Request, user: str | None, system: str, told: Sequence[DoorMessage]
    ) -> tuple[Conversation | None, str | None, bool]:
        caller = caller_of(request)
        for header in NAMING_HEADERS:
            name = request.headers.get(header, "").strip()
            if len(name) > LONGEST_NAME:
                raise InvalidInput(f"{header}: must have at most {LONGEST_NAME} characters")
            if name:
                return await self._named(caller, name, existing=await self._get(caller, name))
        if user := (user or "").strip():
            # Users may have chosen their names: by this field only an id that can't be guessed reaches
            # a conversation that is there already.
            known = user.startswith(f"{CONVERSATION}-")
            existing = await self._get(caller, user) if known else None
            return await self._named(caller, user, existing=existing)
        return await self._resent(caller, system, told), None, False

    async def _named(
        self, caller: Caller, name: str, *, existing: Conversation | None
    ) -> tuple[Conversation | None, str | None, bool]:
        if existing is not None:
            return existing, None, True
        if name.startswith(f"{CONVERSATION}-"):
            raise NoConversation(name)
        own = f"{CONVERSATION}-{uuid5(NAMESPACE_URL, f'openai-door:{caller.stored(name)}')}"
        found = await self._get(caller, own)
        return (None, own, True) if found is None else (found, None, True)

    async def _resent(self, caller: Caller, system: str, told: Sequence[DoorMessage]) -> Conversation | None:
        """Return the conversation that stands exactly where these messages end, if there is one."""
        if not told:
            return None
        known = await self._store.runs.keyed(_key(caller, system, told), now_ms())
        if known is None or not known.subject or known.body is None:
            return None
        conversation = await self._get(caller, known.subject)
        if conversation is None or conversation.message_count != known.body["message_count"]:
            return None
        return conversation

    async def _get(self, caller: Caller, conversation_id: str) -> Conversation | None:
        return await self._store.conversations.reach(caller.within, conversation_id)


def _key(caller: Caller, system: str, messages: Sequence[DoorMessage]) -> Idempotency:
    said = [system.strip(), *([item.role, item.content.strip(), *_calls(item)] for item in messages)]
    digest = hashlib.sha256(jsons.dump_bytes(said)).hexdigest()
    return Idempotency(caller.stored(ROUTE), digest, digest)


def results_in(messages: Sequence[DoorMessage]) -> dict[str, str]:
    """Return the results of functions, by their calls, that the program hasn't had an answer to yet.

    Raises InvalidInput for one without the id of its call.
    """
    found = {}
    for message in reversed(messages):
        if message.role == "assistant":
            break
        if message.role == "tool":
            if not message.tool_call_id:
                raise InvalidInput(f"{CALL_ID}: is required in a message of role tool")
            found[message.tool_call_id] = message.content
    return found


def _last_calls(messages: Sequence[DoorMessage]) -> list[str]:
    said = (message for message in reversed(messages) if message.role == "assistant")
    return next(map(_calls, said), [])


def _calls(message: DoorMessage) -> list[str]:
    return [call.id for call in message.tool_calls or ()]


def _element(name: str, text: str) -> str:
    return f"<{name}>{untrusted.escaped(text)}</{name}>"

"""What channels bring and deliver, as it crosses the store's border, and which conversation a chat is in.

A chat has one current conversation, where its messages go, and hears all that it has ever been in.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from shared.errors import NoConversation
from shared.principals import OPERATOR, principal_of, stored_name
from shared.store.contract import Row, Tx
from shared.store.rows import Noun, reader, writes
from shared.store.sql import conversations

SAID: Final = "said:"
"""Begins the source of what ``send_message`` said; its id follows."""


@dataclass(frozen=True, slots=True)
class Chat:
    """A chat of a channel and who spoke in it last; ``private``: nobody else is in it.

    ``principal_id``: whose conversation it is in.
    """

    channel: str
    id: str
    private: bool
    sender_id: str
    sender_name: str = ""
    principal_id: str = OPERATOR


@dataclass(frozen=True, slots=True)
class NewUpdate:
    """Something that came in, under the channel's own id for it; ``urgent``: it doesn't wait its turn."""

    update_id: str
    chat_id: str
    body: dict[str, Any]
    urgent: bool = False


@dataclass(frozen=True, slots=True)
class Update:
    """An update that waits to be handled; ``run_id`` is the run that was to answer it, if one was begun.

    ``draft_id`` is the channel's message in which that answer is growing.
    """

    number: int
    channel: str
    update_id: str
    chat_id: str
    body: dict[str, Any]
    received_at: int
    run_id: str | None = None
    conversation_id: str | None = None
    draft_id: str | None = None


@dataclass(frozen=True, slots=True)
class Saying:
    """What is to be delivered to a chat; ``source`` names it, and one chat gets a source once.

    ``draft_id``: the channel's message that already shows a beginning of it.
    """

    source: str
    text: str
    reply_to: str | None = None
    draft_id: str | None = None


def told_of(text: str, answer: Mapping[str, Any]) -> str:
    """Return what a chat is told of a run's end whose answer it is; ``text`` is what the run said."""
    if answer["status"] in ("success", "paused"):
        return text
    return f"{text}\n\n⚠️ {answer.get('error') or 'The run failed.'}".strip()


@dataclass(frozen=True, slots=True)
class Delivery:
    """A saying on its way to a chat; ``parts_sent`` of its parts are there. ``file`` as in ``Outbound``."""

    number: int
    conversation_id: str
    channel: str
    chat_id: str
    saying: Saying
    parts_sent: int
    attempts: int
    created_at: int
    error: str | None = None
    file: str | None = None


to_chat: Final = reader(
    Chat, {"id": "chat_id", "principal_id": "conversation_id"}, private=bool, principal_id=principal_of
)


class Chats(Noun):
    """Which conversation a chat is in."""

    async def enter(self, chat: Chat, now: int, *, trusted: bool = False) -> str:
        """Return the conversation the chat is in, made now (``trusted`` or not) if there is none; remember
        who spoke.

        It is named ``<channel>:<chat id>``, with ``.2``, ``.3`` … when that one has been used before.
        """
        found = await self._engine.read(lambda tx: _current(tx, chat.channel, chat.id))
        if found is not None and to_chat(found) == chat:
            return str(found["conversation_id"])
        return await self._engine.write(lambda tx: _enter(tx, chat, now, trusted))

    async def begin_anew(self, chat: Chat, now: int, *, trusted: bool = False) -> str:
        """Put the chat into a new conversation. What the ones before still say reaches the chat as well."""
        return await self._engine.write(lambda tx: _make(tx, chat, now, trusted))

    @writes()
    async def join(self, tx: Tx, chat: Chat, conversation_id: str) -> None:
        """Put the chat into a conversation that exists already; raises NotFound."""
        await _alone(tx, chat.channel, chat.id)
        found = await tx.fetchval("SELECT 1 FROM conversations WHERE id = $1 FOR KEY SHARE", conversation_id)
        NoConversation.unless(found, conversation_id)
        await _put(tx, chat, conversation_id)

    @writes()
    async def leave(self, tx: Tx, channel: str, chat_id: str, conversation_id: str) -> None:
        """Take a conversation away from the chat, which goes back to its newest other one."""
        await _alone(tx, channel, chat_id)
        statement = "DELETE FROM channel_chats WHERE channel = $1 AND chat_id = $2 AND conversation_id = $3"
        await tx.execute(statement, channel, chat_id, conversation_id)
        if await _current(tx, channel, chat_id) is None:
            statement = """UPDATE channel_chats SET current = 1 WHERE number = (
                SELECT max(number) FROM channel_chats WHERE channel = $1 AND chat_id = $2)"""
            await tx.execute(statement, channel, chat_id)

    @writes()
    async def move(self, tx: Tx, channel: str, old: str, new: str) -> None:
        """Give a chat's conversations, updates and deliveries to the id that it has now.

        The old current conversation stays the current one. Ids of the channel's messages count anew there.
        """
        for chat_id in sorted((old, new)):
            await _alone(tx, channel, chat_id)
        if old == new or await _current(tx, channel, old) is None:
            return
        names = (channel, old, new)
        for table, key in (("channel_chats", "conversation_id"), ("channel_deliveries", "source")):
            # What the new id has of the same goes: a row for each would be one too many.
            statement = f"""DELETE FROM {table} WHERE channel = $1 AND chat_id = $3 AND {key} IN
                    (SELECT {key} FROM {table} WHERE channel = $1 AND chat_id = $2)"""
            await tx.execute(statement, *names)
        await tx.execute(
            "UPDATE channel_chats SET current = 0 WHERE channel = $1 AND chat_id = $2", channel, new
        )
        await tx.execute("UPDATE channel_chats SET chat_id = $3 WHERE channel = $1 AND chat_id = $2", *names)
        await tx.execute(
            "UPDATE channel_updates SET chat_id = $3, draft_id = NULL WHERE channel = $1 AND chat_id = $2",
            *names,
        )
        statement = """UPDATE channel_deliveries SET chat_id = $3, draft_id = NULL, reply_to = NULL
            WHERE channel = $1 AND chat_id = $2"""
        await tx.execute(statement, *names)


async def _current(tx: Tx, channel: str, chat_id: str) -> Row | None:
    """Return the row of the chat's current conversation."""
    return await tx.fetchrow(
        "SELECT * FROM channel_chats WHERE channel = $1 AND chat_id = $2 AND current = 1", channel, chat_id
    )


async def _enter(tx: Tx, chat: Chat, now: int, trusted: bool) -> str:
    """Return the current conversation, made now if there is none; remember who spoke."""
    await _alone(tx, chat.channel, chat.id)
    row = await _current(tx, chat.channel, chat.id)
    if row is not None and to_chat(row).principal_id != chat.principal_id:
        # Another principal has the chat now: it hears nothing more of those before.
        statement = """DELETE FROM channel_chats WHERE channel = $1 AND chat_id = $2 AND conversation_id IN
                (SELECT id FROM conversations WHERE principal_id <> $3)"""
        await tx.execute(statement, chat.channel, chat.id, chat.principal_id)
        row = None
    if row is None:
        return await _make(tx, chat, now, trusted)
    statement = """UPDATE channel_chats SET private = $3, sender_id = $4, sender_name = $5
        WHERE channel = $1 AND chat_id = $2"""
    await tx.execute(statement, chat.channel, chat.id, int(chat.private), chat.sender_id, chat.sender_name)
    return str(row["conversation_id"])


async def _make(tx: Tx, chat: Chat, now: int, trusted: bool) -> str:
    """Make a conversation and put the chat into it."""
    await _alone(tx, chat.channel, chat.id)
    conversation_id = await _free_id(tx, chat)
    await conversations.insert(tx, conversation_id, now, None, False, trusted, chat.principal_id)
    await _put(tx, chat, conversation_id)
    return conversation_id


async def _alone(tx: Tx, channel: str, chat_id: str) -> None:
    await tx.lock("chat", f"{channel} {chat_id}")


async def _put(tx: Tx, chat: Chat, conversation_id: str) -> None:
    await tx.execute(
        "UPDATE channel_chats SET current = 0 WHERE channel = $1 AND chat_id = $2", chat.channel, chat.id
    )
    statement = """INSERT INTO channel_chats
            (conversation_id, channel, chat_id, current, private, sender_id, sender_name)
        VALUES ($1, $2, $3, 1, $4, $5, $6) ON CONFLICT (conversation_id, channel, chat_id) DO UPDATE SET
            current = 1, private = excluded.private, sender_id = excluded.sender_id,
            sender_name = excluded.sender_name"""
    await tx.execute(
        statement, conversation_id, chat.channel, chat.id, int(chat.private), chat.sender_id, chat.sender_name
    )


async def _free_id(tx: Tx, chat: Chat) -> str:
    base = stored_name(chat.principal_id, f"{chat.channel}:{chat.id}")
    known = await tx.fetchval(
        "SELECT count(*) FROM channel_chats WHERE channel = $1 AND chat_id = $2", chat.channel, chat.id
    )
    number = int(known) + 1
    while True:
        conversation_id = base if number == 1 else f"{base}.{number}"
        taken = await tx.fetchval("SELECT 1 FROM conversations WHERE id = $1", conversation_id)
        if taken is None:
            return conversation_id
        number += 1

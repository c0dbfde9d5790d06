"""Which conversation a chat is in. Each function runs inside a transaction.

A chat has one current conversation, where its messages go, and hears all that it has ever been in.
"""

from __future__ import annotations

from shared.channel_models import Chat
from shared.errors import NoConversation
from shared.store.postgres import conversations
from shared.store.postgres.driver import Connection
from shared.store.postgres.locks import lock
from shared.store.rows import Row


async def current(connection: Connection, channel: str, chat_id: str) -> Row | None:
    """Return the row of the chat's current conversation."""
    return await connection.fetchrow(
        "SELECT * FROM channel_chats WHERE channel = $1 AND chat_id = $2 AND current = 1", channel, chat_id
    )


async def enter(connection: Connection, chat: Chat, now: int) -> str:
    """Return the current conversation, made now if there is none; remember who spoke."""
    await _alone(connection, chat.channel, chat.id)
    row = await current(connection, chat.channel, chat.id)
    if row is None:
        return await make(connection, chat, now)
    await connection.execute(
        """UPDATE channel_chats SET private = $3, sender_id = $4, sender_name = $5
        WHERE channel = $1 AND chat_id = $2""",
        chat.channel,
        chat.id,
        int(chat.private),
        chat.sender_id,
        chat.sender_name,
    )
    return str(row["conversation_id"])


async def make(connection: Connection, chat: Chat, now: int) -> str:
    """Make a conversation and put the chat into it."""
    await _alone(connection, chat.channel, chat.id)
    conversation_id = await _free_id(connection, chat)
    await conversations.insert(connection, conversation_id, now, None, False)
    await _put(connection, chat, conversation_id)
    return conversation_id


async def join(connection: Connection, chat: Chat, conversation_id: str) -> None:
    """Put the chat into a conversation that exists already; raises NotFound."""
    await _alone(connection, chat.channel, chat.id)
    found = await connection.fetchval(
        "SELECT 1 FROM conversations WHERE id = $1 FOR KEY SHARE", conversation_id
    )
    if found is None:
        raise NoConversation(conversation_id)
    await _put(connection, chat, conversation_id)


async def leave(connection: Connection, channel: str, chat_id: str, conversation_id: str) -> None:
    """Take a conversation away from the chat, which goes back to its newest other one."""
    await _alone(connection, channel, chat_id)
    await connection.execute(
        "DELETE FROM channel_chats WHERE channel = $1 AND chat_id = $2 AND conversation_id = $3",
        channel,
        chat_id,
        conversation_id,
    )
    if await current(connection, channel, chat_id) is None:
        await connection.execute(
            """UPDATE channel_chats SET current = 1 WHERE number = (SELECT max(number) FROM channel_chats
            WHERE channel = $1 AND chat_id = $2)""",
            channel,
            chat_id,
        )


async def _alone(connection: Connection, channel: str, chat_id: str) -> None:
    await lock(connection, "chat", f"{channel} {chat_id}")


async def _put(connection: Connection, chat: Chat, conversation_id: str) -> None:
    await connection.execute(
        "UPDATE channel_chats SET current = 0 WHERE channel = $1 AND chat_id = $2", chat.channel, chat.id
    )
    await connection.execute(
        """INSERT INTO channel_chats
            (conversation_id, channel, chat_id, current, private, sender_id, sender_name)
        VALUES ($1, $2, $3, 1, $4, $5, $6) ON CONFLICT (conversation_id, channel, chat_id) DO UPDATE SET
            current = 1, private = excluded.private, sender_id = excluded.sender_id,
            sender_name = excluded.sender_name""",
        conversation_id,
        chat.channel,
        chat.id,
        int(chat.private),
        chat.sender_id,
        chat.sender_name,
    )


async def _free_id(connection: Connection, chat: Chat) -> str:
    base = f"{chat.channel}:{chat.id}"
    known = await connection.fetchval(
        "SELECT count(*) FROM channel_chats WHERE channel = $1 AND chat_id = $2", chat.channel, chat.id
    )
    number = int(known) + 1
    while True:
        conversation_id = base if number == 1 else f"{base}.{number}"
        taken = await connection.fetchval("SELECT 1 FROM conversations WHERE id = $1", conversation_id)
        if taken is None:
            return conversation_id
        number += 1

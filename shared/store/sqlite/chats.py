"""Which conversation a chat is in. Each function runs inside a transaction.

A chat has one current conversation, where its messages go, and hears all that it has ever been in.
"""

from __future__ import annotations

import sqlite3

from shared.channel_models import Chat
from shared.errors import NoConversation
from shared.store.sqlite import conversations


def current(connection: sqlite3.Connection, channel: str, chat_id: str) -> sqlite3.Row | None:
    """Return the row of the chat's current conversation."""
    row: sqlite3.Row | None = connection.execute(
        "SELECT * FROM channel_chats WHERE channel = ? AND chat_id = ? AND current = 1", (channel, chat_id)
    ).fetchone()
    return row


def enter(connection: sqlite3.Connection, chat: Chat, now: int) -> str:
    """Return the current conversation, made now if there is none; remember who spoke."""
    row = current(connection, chat.channel, chat.id)
    if row is None:
        return make(connection, chat, now)
    connection.execute(
        """UPDATE channel_chats SET private = ?, sender_id = ?, sender_name = ?
        WHERE channel = ? AND chat_id = ?""",
        (chat.private, chat.sender_id, chat.sender_name, chat.channel, chat.id),
    )
    return str(row["conversation_id"])


def make(connection: sqlite3.Connection, chat: Chat, now: int) -> str:
    """Make a conversation and put the chat into it."""
    conversation_id = _free_id(connection, chat)
    conversations.insert(connection, conversation_id, now, None, False)
    _put(connection, chat, conversation_id)
    return conversation_id


def join(connection: sqlite3.Connection, chat: Chat, conversation_id: str) -> None:
    """Put the chat into a conversation that exists already; raises NotFound."""
    found = connection.execute("SELECT 1 FROM conversations WHERE id = ?", (conversation_id,)).fetchone()
    if found is None:
        raise NoConversation(conversation_id)
    _put(connection, chat, conversation_id)


def leave(connection: sqlite3.Connection, channel: str, chat_id: str, conversation_id: str) -> None:
    """Take a conversation away from the chat, which goes back to its newest other one."""
    connection.execute(
        "DELETE FROM channel_chats WHERE channel = ? AND chat_id = ? AND conversation_id = ?",
        (channel, chat_id, conversation_id),
    )
    if current(connection, channel, chat_id) is None:
        connection.execute(
            """UPDATE channel_chats SET current = 1 WHERE number = (SELECT max(number) FROM channel_chats
            WHERE channel = ? AND chat_id = ?)""",
            (channel, chat_id),
        )


def _put(connection: sqlite3.Connection, chat: Chat, conversation_id: str) -> None:
    key = (chat.channel, chat.id)
    connection.execute("UPDATE channel_chats SET current = 0 WHERE channel = ? AND chat_id = ?", key)
    connection.execute(
        """INSERT INTO channel_chats
            (conversation_id, channel, chat_id, current, private, sender_id, sender_name)
        VALUES (?, ?, ?, 1, ?, ?, ?) ON CONFLICT (conversation_id, channel, chat_id) DO UPDATE SET
            current = 1, private = excluded.private, sender_id = excluded.sender_id,
            sender_name = excluded.sender_name""",
        (conversation_id, *key, chat.private, chat.sender_id, chat.sender_name),
    )


def _free_id(connection: sqlite3.Connection, chat: Chat) -> str:
    base = f"{chat.channel}:{chat.id}"
    known = connection.execute(
        "SELECT count(*) FROM channel_chats WHERE channel = ? AND chat_id = ?", (chat.channel, chat.id)
    ).fetchone()[0]
    number = known + 1
    while True:
        conversation_id = base if number == 1 else f"{base}.{number}"
        taken = connection.execute("SELECT 1 FROM conversations WHERE id = ?", (conversation_id,)).fetchone()
        if taken is None:
            return conversation_id
        number += 1

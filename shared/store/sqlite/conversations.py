"""Conversations and their messages in SQLite."""

from __future__ import annotations

import sqlite3
from typing import Final

from shared.errors import ConversationBusy, Duplicate, NoConversation
from shared.models import Conversation, HistoryEntry, Message, Page
from shared.store import rows
from shared.store.sql.conversations import insert
from shared.store.sqlite.engine import Database
from shared.store.sqlite.transactions import SqliteTx, drive

# A conversation runs as long as a run row says so: there is no second place that could be stale.
SELECT: Final = """SELECT c.*, EXISTS (
    SELECT 1 FROM runs WHERE conversation_id = c.id AND state = 'running') AS running
    FROM conversations c"""


class SqliteConversations:
    """Implements the Conversations contract."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def ensure(self, conversation_id: str, now: int) -> Conversation:
        """Return the conversation, made now if it is absent."""
        found = await self.get(conversation_id)
        if found is not None:
            return found
        try:
            return await self.create(conversation_id, now)
        except Duplicate:
            found = await self.get(conversation_id)
            if found is None:
                raise
            return found

    async def create(
        self, conversation_id: str, now: int, *, owner_id: str | None = None, temporary: bool = False
    ) -> Conversation:
        """Make a conversation; raises Duplicate."""

        def work(connection: sqlite3.Connection) -> Conversation:
            drive(insert(SqliteTx(connection), conversation_id, now, owner_id, temporary))
            return _get(connection, conversation_id)

        return await self._db.write(work)

    async def get(self, conversation_id: str) -> Conversation | None:
        """Return the conversation or None."""

        def work(connection: sqlite3.Connection) -> Conversation | None:
            row = connection.execute(f"{SELECT} WHERE c.id = ?", (conversation_id,)).fetchone()
            return None if row is None else rows.conversation(row)

        return await self._db.read(work)

    async def page(
        self, *, limit: int, cursor: str | None, include_temporary: bool = False
    ) -> Page[Conversation]:
        """Return conversations, newest activity first."""
        after = rows.decode_cursor(cursor, int, str)
        where = ["1"] if include_temporary else ["c.temporary = 0"]
        if after is not None:
            where.append("(c.last_activity, c.id) < (?, ?)")
        statement = f"{SELECT} WHERE {' AND '.join(where)} ORDER BY c.last_activity DESC, c.id DESC LIMIT ?"

        def work(connection: sqlite3.Connection) -> Page[Conversation]:
            found = connection.execute(statement, (*(after or ()), limit + 1)).fetchall()
            return rows.page(found, limit, rows.conversation, lambda row: (row["last_activity"], row["id"]))

        return await self._db.read(work)

    async def messages(self, conversation_id: str, *, limit: int, cursor: str | None) -> Page[Message]:
        """Return the messages people see, in stored order."""
        after = rows.decode_cursor(cursor, int) or [0]

        def work(connection: sqlite3.Connection) -> Page[Message]:
            found = connection.execute(
                """SELECT id, conversation_id, seq, role, sender, sender_name, text, created_at, refused
                FROM messages WHERE conversation_id = ? AND seq > ? AND text IS NOT NULL
                ORDER BY seq LIMIT ?""",
                (conversation_id, *after, limit + 1),
            ).fetchall()
            return rows.page(found, limit, rows.message, lambda row: (row["seq"],))

        return await self._db.read(work)

    async def history(
        self, conversation_id: str, *, after: int = 0, through: int | None = None
    ) -> list[HistoryEntry]:
        """Return messages for the model, in stored order: those after ``after``, up to ``through``."""

        def work(connection: sqlite3.Connection) -> list[HistoryEntry]:
            found = connection.execute(
                """SELECT role, blocks, seq, run_id, text, sender_name, created_at, refused FROM messages
                WHERE conversation_id = ? AND seq > ? AND seq <= ? ORDER BY seq""",
                (conversation_id, after, 2**62 if through is None else through),
            )
            return [rows.history_entry(row) for row in found]

        return await self._db.read(work)

    async def delete(self, conversation_id: str) -> None:
        """Remove every row of it and of its temporary conversations."""

        def work(connection: sqlite3.Connection) -> None:
            family = "SELECT id FROM conversations WHERE id = ?1 OR (owner_id = ?1 AND temporary = 1)"
            running = connection.execute(
                f"SELECT 1 FROM runs WHERE state = 'running' AND conversation_id IN ({family})",
                (conversation_id,),
            ).fetchone()
            if running is not None:
                raise ConversationBusy(conversation_id)
            connection.execute(
                f"DELETE FROM idempotency_keys WHERE conversation_id IN ({family})", (conversation_id,)
            )
            gone = connection.execute(
                f"DELETE FROM conversations WHERE id IN ({family})", (conversation_id,)
            ).rowcount
            if gone == 0:
                raise NoConversation(conversation_id)

        await self._db.write_apart(work)


def _get(connection: sqlite3.Connection, conversation_id: str) -> Conversation:
    row = connection.execute(f"{SELECT} WHERE c.id = ?", (conversation_id,)).fetchone()
    return rows.conversation(row)

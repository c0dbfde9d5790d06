"""Conversations and their messages in PostgreSQL."""

from __future__ import annotations

from typing import Final

from shared.errors import ConversationBusy, Duplicate, NoConversation
from shared.models import Conversation, HistoryEntry, Message, Page
from shared.store import rows
from shared.store.postgres.database import Database
from shared.store.postgres.driver import Connection
from shared.store.postgres.transactions import PostgresTx
from shared.store.sql.conversations import insert

# A conversation runs as long as a run row says so: there is no second place that could be stale.
SELECT: Final = """SELECT c.*, EXISTS (
    SELECT 1 FROM runs WHERE conversation_id = c.id AND state = 'running') AS running
    FROM conversations AS c"""

FAMILY: Final = """SELECT id FROM conversations WHERE id = $1 OR (owner_id = $1 AND temporary = 1)
    ORDER BY id FOR UPDATE"""

LAST_SEQ: Final = 2**62


class PostgresConversations:
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

        async def work(connection: Connection) -> Conversation:
            await insert(PostgresTx(connection), conversation_id, now, owner_id, temporary)
            row = await connection.fetchrow(f"{SELECT} WHERE c.id = $1", conversation_id)
            if row is None:
                raise NoConversation(conversation_id)
            return rows.conversation(row)

        return await self._db.write(work)

    async def get(self, conversation_id: str) -> Conversation | None:
        """Return the conversation or None."""

        async def work(connection: Connection) -> Conversation | None:
            row = await connection.fetchrow(f"{SELECT} WHERE c.id = $1", conversation_id)
            return None if row is None else rows.conversation(row)

        return await self._db.read(work)

    async def page(
        self, *, limit: int, cursor: str | None, include_temporary: bool = False
    ) -> Page[Conversation]:
        """Return conversations, newest activity first."""
        after = rows.decode_cursor(cursor, int, str)
        where = ["true"] if include_temporary else ["c.temporary = 0"]
        if after is not None:
            where.append("(c.last_activity, c.id) < ($2, $3)")
        statement = f"{SELECT} WHERE {' AND '.join(where)} ORDER BY c.last_activity DESC, c.id DESC LIMIT $1"

        async def work(connection: Connection) -> Page[Conversation]:
            found = await connection.fetch(statement, limit + 1, *(after or ()))
            return rows.page(found, limit, rows.conversation, lambda row: (row["last_activity"], row["id"]))

        return await self._db.read(work)

    async def messages(self, conversation_id: str, *, limit: int, cursor: str | None) -> Page[Message]:
        """Return the messages people see, in stored order."""
        after = rows.decode_cursor(cursor, int) or [0]

        async def work(connection: Connection) -> Page[Message]:
            found = await connection.fetch(
                """SELECT id, conversation_id, seq, role, sender, sender_name, text, created_at, refused
                FROM messages WHERE conversation_id = $1 AND seq > $2 AND text IS NOT NULL
                ORDER BY seq LIMIT $3""",
                conversation_id,
                *after,
                limit + 1,
            )
            return rows.page(found, limit, rows.message, lambda row: (row["seq"],))

        return await self._db.read(work)

    async def history(
        self, conversation_id: str, *, after: int = 0, through: int | None = None
    ) -> list[HistoryEntry]:
        """Return messages for the model, in stored order."""

        async def work(connection: Connection) -> list[HistoryEntry]:
            found = await connection.fetch(
                """SELECT role, blocks, seq, run_id, text, sender_name, created_at, refused FROM messages
                WHERE conversation_id = $1 AND seq > $2 AND seq <= $3 ORDER BY seq""",
                conversation_id,
                after,
                LAST_SEQ if through is None else through,
            )
            return [rows.history_entry(row) for row in found]

        return await self._db.read_patiently(work)

    async def delete(self, conversation_id: str) -> None:
        """Remove every row of it and of its temporary conversations."""

        async def work(connection: Connection) -> None:
            # Whoever begins a run locks its conversation first, so none begins between this look and the end.
            family = [row["id"] for row in await connection.fetch(FAMILY, conversation_id)]
            if conversation_id not in family:
                raise NoConversation(conversation_id)
            running = await connection.fetchval(
                "SELECT 1 FROM runs WHERE state = 'running' AND conversation_id = ANY($1::text[]) LIMIT 1",
                family,
            )
            if running is not None:
                raise ConversationBusy(conversation_id)
            await connection.execute(
                "DELETE FROM idempotency_keys WHERE conversation_id = ANY($1::text[])", family
            )
            await connection.execute("DELETE FROM conversations WHERE id = ANY($1::text[])", family)

        await self._db.write(work)

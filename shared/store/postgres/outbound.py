"""What agents say to people, in PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence

from shared.errors import NoConversation
from shared.ids import MESSAGE, new_id
from shared.models import Outbound
from shared.store import rows
from shared.store.postgres.database import FOREIGN_KEY_VIOLATION, Database
from shared.store.postgres.driver import Connection, is_server_error
from shared.store.postgres.locks import lock


class PostgresOutbound:
    """Implements the OutboundMessages contract."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def add(
        self,
        source_id: str,
        conversation_id: str,
        text: str,
        sender: str,
        now: int,
        *,
        patiently: bool = False,
    ) -> Outbound:
        """Store a message for ``conversation_id`` said by ``source_id``."""
        write = self._db.write_patiently if patiently else self._db.write
        try:
            return await write(
                lambda connection: insert(connection, source_id, conversation_id, text, sender, now)
            )
        except Exception as error:
            if is_server_error(error, FOREIGN_KEY_VIOLATION):
                raise NoConversation(conversation_id) from error
            raise

    async def last_seq(self, source_id: str) -> int:
        """Return the seq of the newest message ``source_id`` said, 0 if none."""

        async def work(connection: Connection) -> int:
            last = await connection.fetchval(
                "SELECT max(seq) FROM outbound_messages WHERE source_id = $1", source_id
            )
            return int(last or 0)

        return await self._db.read(work)

    async def said_by(self, source_id: str, *, after: int) -> list[Outbound]:
        """Return what the conversation said after ``after``, in order."""

        async def work(connection: Connection) -> list[Outbound]:
            found = await connection.fetch(
                "SELECT * FROM outbound_messages WHERE source_id = $1 AND seq > $2 ORDER BY seq",
                source_id,
                after,
            )
            return [rows.outbound(row) for row in found]

        return await self._db.read_patiently(work)

    async def delivered(self, ids: Sequence[str], now: int) -> None:
        """Mark messages as handed over, so that retention may remove them."""
        if not ids:
            return

        async def work(connection: Connection) -> None:
            await connection.execute(
                """UPDATE outbound_messages SET delivered_at = $1
                WHERE id = ANY($2::text[]) AND delivered_at IS NULL""",
                now,
                list(ids),
            )

        await self._db.write_patiently(work)


async def insert(
    connection: Connection, source_id: str, conversation_id: str, text: str, sender: str, now: int
) -> Outbound:
    """Store a message inside a transaction."""
    # Numbers are given out before the commit: without this a reader could see 2, and 1 only later.
    await lock(connection, "said", source_id)
    row = await connection.fetchrow(
        """INSERT INTO outbound_messages (id, conversation_id, source_id, text, sender, created_at)
        VALUES ($1, $2, $3, $4, $5, $6) RETURNING *""",
        new_id(MESSAGE),
        conversation_id,
        source_id,
        text,
        sender,
        now,
    )
    if row is None:
        raise RuntimeError("an insertion returned nothing")
    return rows.outbound(row)

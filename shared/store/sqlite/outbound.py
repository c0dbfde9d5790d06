"""What agents say to people, in SQLite."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from shared.errors import NoConversation
from shared.ids import MESSAGE, new_id
from shared.models import Outbound
from shared.store import rows
from shared.store.channel_rows import SAID
from shared.store.sqlite.engine import Database


class SqliteOutbound:
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
        return await self._db.write(
            lambda connection: insert(connection, source_id, conversation_id, text, sender, now)
        )

    async def last_seq(self, source_id: str) -> int:
        """Return the seq of the newest message ``source_id`` said, 0 if none."""

        def work(connection: sqlite3.Connection) -> int:
            row = connection.execute(
                "SELECT max(seq) FROM outbound_messages WHERE source_id = ?", (source_id,)
            ).fetchone()
            return int(row[0] or 0)

        return await self._db.read(work)

    async def said_by(self, source_id: str, *, after: int) -> list[Outbound]:
        """Return what the conversation said after ``after``, in order."""

        def work(connection: sqlite3.Connection) -> list[Outbound]:
            found = connection.execute(
                "SELECT * FROM outbound_messages WHERE source_id = ? AND seq > ? ORDER BY seq",
                (source_id, after),
            )
            return [rows.outbound(row) for row in found]

        return await self._db.read(work)

    async def delivered(self, ids: Sequence[str], now: int) -> None:
        """Mark messages as handed over, so that retention may remove them."""
        if not ids:
            return

        def work(connection: sqlite3.Connection) -> None:
            connection.executemany(
                "UPDATE outbound_messages SET delivered_at = ? WHERE id = ? AND delivered_at IS NULL",
                [(now, message_id) for message_id in ids],
            )

        await self._db.write(work)


def insert(
    connection: sqlite3.Connection, source_id: str, conversation_id: str, text: str, sender: str, now: int
) -> Outbound:
    """Store a message inside a transaction; raises NoConversation."""
    message_id = new_id(MESSAGE)
    try:
        row = connection.execute(
            """INSERT INTO outbound_messages (id, conversation_id, source_id, text, sender, created_at)
            VALUES (?, ?, ?, ?, ?, ?) RETURNING *""",
            (message_id, conversation_id, source_id, text, sender, now),
        ).fetchone()
    except sqlite3.IntegrityError as error:
        raise NoConversation(conversation_id) from error
    # In the same transaction, whichever process speaks: no message that chats never hear of.
    _fan_out(connection, conversation_id, f"{SAID}{message_id}", text, now)
    return rows.outbound(row)


def _fan_out(connection: sqlite3.Connection, conversation_id: str, source: str, text: str, now: int) -> None:
    """Have every chat of the conversation get the text."""
    connection.execute(
        """INSERT INTO channel_deliveries (conversation_id, channel, chat_id, source, text, created_at)
        SELECT conversation_id, channel, chat_id, ?, ?, ? FROM channel_chats WHERE conversation_id = ?""",
        (source, text, now, conversation_id),
    )

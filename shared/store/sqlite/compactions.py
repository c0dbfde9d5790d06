"""Compactions in SQLite."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from typing import Final

from shared import jsons
from shared.compactions import Compaction
from shared.errors import LeaseLost
from shared.models import Lease, Spending
from shared.store import rows
from shared.store.sqlite import usage
from shared.store.sqlite.engine import Database
from shared.store.sqlite.lease_clock import lease_now

HOLD: Final = """UPDATE runs SET reserved_tokens = 0, reserved_microdollars = 0
    WHERE id = ? AND fence = ? AND lease_owner = ? AND state = 'running' AND lease_until > ?"""
NEXT: Final = "SELECT coalesce(max(number), 0) + 1 FROM compactions WHERE conversation_id = ?"


class SqliteCompactions:
    """Implements the Compactions contract."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def latest(self, conversation_id: str) -> Compaction | None:
        """Return the compaction in force, None if everything is sent as it is stored."""

        def work(connection: sqlite3.Connection) -> Compaction | None:
            row = connection.execute(
                "SELECT * FROM compactions WHERE conversation_id = ? ORDER BY number DESC LIMIT 1",
                (conversation_id,),
            ).fetchone()
            return None if row is None else rows.compaction(row)

        return await self._db.read(work)

    async def add(
        self, lease: Lease, compaction: Compaction, now: int, *, spent: Spending | None = None
    ) -> Compaction:
        """Put a compaction in force and count what it cost; raises LeaseLost."""

        def work(connection: sqlite3.Connection) -> Compaction:
            held = (lease.run_id, lease.fence, lease.owner, lease_now())
            if connection.execute(HOLD, held).rowcount != 1:
                raise LeaseLost(lease.run_id)
            number = connection.execute(NEXT, (lease.conversation_id,)).fetchone()[0]
            _insert(connection, lease.conversation_id, replace(compaction, number=number, created_at=now))
            if spent is not None:
                usage.count(connection, lease.conversation_id, spent, now)
            return replace(compaction, number=number, created_at=now)

        return await self._db.write(work)

    async def unarchived(self, conversation_id: str) -> list[Compaction]:
        """Return those that replaced messages and are not in the archive yet, oldest first."""

        def work(connection: sqlite3.Connection) -> list[Compaction]:
            found = connection.execute(
                """SELECT * FROM compactions WHERE conversation_id = ? AND archived = 0 AND kind <> 'cut'
                ORDER BY number""",
                (conversation_id,),
            )
            return [rows.compaction(row) for row in found]

        return await self._db.read(work)

    async def mark_archived(self, conversation_id: str, number: int) -> None:
        """Note that the messages which a compaction replaced are in the archive."""
        await self._db.write(
            lambda connection: connection.execute(
                "UPDATE compactions SET archived = 1 WHERE conversation_id = ? AND number = ?",
                (conversation_id, number),
            )
        )


def _insert(connection: sqlite3.Connection, conversation_id: str, made: Compaction) -> None:
    connection.execute(
        """INSERT INTO compactions (conversation_id, number, kind, first_seq, through_seq, text,
            cut_through_seq, cut_chars, thinking_through_seq, model, usage, created_at, message_seq,
            message_chars, left_out)
            VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)""",
        (
            conversation_id,
            made.number,
            made.kind,
            made.first_seq,
            made.through_seq,
            made.text,
            made.cut_through_seq,
            made.cut_chars,
            made.thinking_through_seq,
            made.model,
            rows.usage_text(made.usage),
            made.created_at,
            made.message_seq,
            made.message_chars,
            jsons.dumps(made.left_out),
        ),
    )

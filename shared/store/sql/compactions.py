"""Compactions."""

from __future__ import annotations

from dataclasses import replace

from shared import jsons
from shared.compactions import Compaction
from shared.store import rows
from shared.store.contract import Engine, Tx
from shared.store.sql import usage
from shared.store.sql.run_rows import hold
from shared.values import Lease, Spending


class Compactions:
    """How the beginnings of long conversations are sent; they go with their conversation."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def latest(self, conversation_id: str) -> Compaction | None:
        """Return the compaction in force, None if everything is sent as it is stored."""

        async def work(tx: Tx) -> Compaction | None:
            row = await tx.fetchrow(
                "SELECT * FROM compactions WHERE conversation_id = $1 ORDER BY number DESC LIMIT 1",
                conversation_id,
            )
            return None if row is None else rows.compaction(row)

        return await self._engine.read(work, patient=True)

    async def add(
        self, lease: Lease, compaction: Compaction, now: int, *, spent: Spending | None = None
    ) -> Compaction:
        """Put a compaction in force and count what it cost; raises LeaseLost.

        What was reserved for its model call is given back. Returns it with its number and ``created_at``.
        """

        async def work(tx: Tx) -> Compaction:
            await hold(tx, lease, "reserved_tokens = 0, reserved_microdollars = 0")
            number = 1 + await _newest(tx, lease.conversation_id)
            made = replace(compaction, number=number, created_at=now)
            await _insert(tx, lease.conversation_id, made)
            if spent is not None:
                await usage.count(tx, lease.conversation_id, spent, now)
            return made

        return await self._engine.write(work, patient=True)

    async def unarchived(self, conversation_id: str) -> list[Compaction]:
        """Return those that replaced messages and are not in the archive yet, oldest first."""

        async def work(tx: Tx) -> list[Compaction]:
            found = await tx.fetch(
                """SELECT * FROM compactions WHERE conversation_id = $1 AND archived = 0 AND kind <> 'cut'
                ORDER BY number""",
                conversation_id,
            )
            return [rows.compaction(row) for row in found]

        return await self._engine.read(work, patient=True)

    async def mark_archived(self, conversation_id: str, number: int) -> None:
        """Note that the messages which a compaction replaced are in the archive."""
        await self._engine.write(
            lambda tx: tx.execute(
                "UPDATE compactions SET archived = 1 WHERE conversation_id = $1 AND number = $2",
                conversation_id,
                number,
            ),
            patient=True,
        )


async def _newest(tx: Tx, conversation_id: str) -> int:
    number = await tx.fetchval(
        "SELECT max(number) FROM compactions WHERE conversation_id = $1", conversation_id
    )
    return int(number or 0)


async def _insert(tx: Tx, conversation_id: str, made: Compaction) -> None:
    await tx.execute(
        """INSERT INTO compactions (conversation_id, number, kind, first_seq, through_seq, text,
            cut_through_seq, cut_chars, thinking_through_seq, model, usage, created_at, message_seq,
            message_chars, left_out)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)""",
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
    )

"""Compactions."""

from __future__ import annotations

from dataclasses import replace
from operator import attrgetter
from typing import Final

from shared import jsons
from shared.store import rows
from shared.store.contract import Tx
from shared.store.rows import Noun
from shared.store.sql import usage
from shared.store.sql.leases import hold
from shared.usage_values import Spending
from shared.values import Compaction, Lease

to_compaction: Final = rows.reader(Compaction, left_out=jsons.loads, usage=rows.usage, archived=bool)

_COLUMNS: Final = """number kind first_seq through_seq text cut_through_seq cut_chars thinking_through_seq
    model created_at message_seq message_chars"""
COLUMNS: Final = tuple(_COLUMNS.split())
INSERT: Final = rows.insertion("compactions", (*COLUMNS, "conversation_id", "usage", "left_out"))
VALUES: Final = attrgetter(*COLUMNS)


class Compactions(Noun):
    """How the beginnings of long conversations are sent; they go with their conversation."""

    async def latest(self, conversation_id: str) -> Compaction | None:
        """Return the compaction in force, None if everything is sent as it is stored."""
        return await self._one(
            to_compaction,
            "SELECT * FROM compactions WHERE conversation_id = $1 ORDER BY number DESC LIMIT 1",
            conversation_id,
            patient=True,
        )

    async def add(
        self, lease: Lease, compaction: Compaction, now: int, *, spent: Spending | None = None
    ) -> Compaction:
        """Put a compaction in force and count what it cost; raises LeaseLost.

        What was reserved for its model call is given back. Returns it with its number and ``created_at``.
        """

        async def work(tx: Tx) -> Compaction:
            await hold(tx, lease, "reserved_tokens = 0, reserved_microdollars = 0")
            newest = await tx.fetchval(
                "SELECT max(number) FROM compactions WHERE conversation_id = $1", lease.conversation_id
            )
            made = replace(compaction, number=(newest or 0) + 1, created_at=now)
            own = (lease.conversation_id, jsons.dumps(made.usage), jsons.dumps(made.left_out))
            await tx.execute(INSERT, *VALUES(made), *own)
            if spent is not None:
                await usage.count(tx, lease.conversation_id, spent, now)
            return made

        return await self._engine.write(work, patient=True)

    async def unarchived(self, conversation_id: str) -> list[Compaction]:
        """Return those that replaced messages and are not in the archive yet, oldest first."""
        statement = """SELECT * FROM compactions WHERE conversation_id = $1 AND archived = 0 AND kind <> 'cut'
            ORDER BY number"""
        return await self._all(to_compaction, statement, conversation_id, patient=True)

    async def mark_archived(self, conversation_id: str, number: int) -> None:
        """Note that the messages which a compaction replaced are in the archive."""
        await self._change(
            "UPDATE compactions SET archived = 1 WHERE conversation_id = $1 AND number = $2",
            conversation_id,
            number,
            patient=True,
        )

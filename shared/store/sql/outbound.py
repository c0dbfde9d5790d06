"""What agents say to people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from shared.errors import NoConversation
from shared.ids import MESSAGE, new_id
from shared.store.contract import Tx
from shared.store.rows import Noun, reader


@dataclass(frozen=True, slots=True)
class Outbound:
    """A message from an agent to people. ``source_id`` is the conversation that spoke, ``seq`` orders all.

    ``file``, as JSON: path, size and SHA-256 of one that is sent with it, and the name of its copy if any.
    """

    seq: int
    id: str
    conversation_id: str
    source_id: str
    text: str
    sender: str
    created_at: int
    file: str | None = None


to_outbound: Final = reader(Outbound)

# Nobody speaks into another principal's conversation; a principal's own may be named as it says it.
INSERT: Final = """INSERT INTO outbound_messages
    (id, conversation_id, source_id, text, sender, created_at, file)
    SELECT $1, target.id, source.id, $4, $5, $6, $7 FROM conversations AS source JOIN conversations AS target
        ON target.principal_id = source.principal_id
    WHERE source.id = $3 AND target.id IN ($2, source.principal_id || '+' || $2) RETURNING *"""


class OutboundMessages(Noun):
    """What agents say to people through ``send_message``."""

    async def add(
        self,
        source_id: str,
        conversation_id: str,
        text: str,
        sender: str,
        now: int,
        *,
        patiently: bool = False,
        file: str | None = None,
        message_id: str | None = None,
    ) -> Outbound:
        """Store a message for ``conversation_id`` said by ``source_id``; raises NotFound.

        ``patiently``: for a host's run in flight, which outlasts a restart of the database.
        """
        return await self._engine.write(
            lambda tx: insert(tx, source_id, conversation_id, text, sender, now, file, message_id),
            patient=patiently,
        )

    async def said_by(self, source_id: str, *, after: int) -> list[Outbound]:
        """Return what the conversation said after ``after``, in order."""
        return await self._all(
            to_outbound,
            "SELECT * FROM outbound_messages WHERE source_id = $1 AND seq > $2 ORDER BY seq",
            source_id,
            after,
            patient=True,
        )


async def delivered(tx: Tx, ids: Sequence[str], now: int) -> None:
    """Mark messages as handed over, so that retention may remove them."""
    statement = """UPDATE outbound_messages SET delivered_at = $1
        WHERE id = ANY($2::text[]) AND delivered_at IS NULL"""
    await tx.execute(statement, now, list(ids))


async def insert(
    tx: Tx,
    source_id: str,
    conversation_id: str,
    text: str,
    sender: str,
    now: int,
    file: str | None = None,
    message_id: str | None = None,
) -> Outbound:
    """Store a message inside a transaction; raises NotFound."""
    # Numbers are given out before the commit: without this a reader could see 2, and 1 only later.
    await tx.lock("said", source_id)
    # The answer to an earlier try may have been lost.
    known = message_id and await tx.fetchrow("SELECT * FROM outbound_messages WHERE id = $1", message_id)
    named = message_id or new_id(MESSAGE)
    row = known or await tx.fetchrow(INSERT, named, conversation_id, source_id, text, sender, now, file)
    if row is None:
        raise NoConversation(conversation_id)
    return to_outbound(row)

"""Responses of the door /v1/responses: which run each of them is, and what it was asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from shared import jsons
from shared.errors import NoConversation
from shared.ids import MESSAGE, new_id
from shared.store import rows
from shared.store.contract import Tx
from shared.store.rows import Noun
from shared.store.sql import conversations


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A response: the run that answers, and what it was asked.

    ``asked``: ``echo`` are the fields that the response tells again, ``items`` the input's items.
    ``made_conversation``: its conversation is there for responses alone.
    """

    id: str
    conversation_id: str
    principal_id: str
    run_id: str
    previous_id: str | None
    made_conversation: bool
    background: bool
    asked: Mapping[str, Any]
    created_at: int


COLUMNS: Final = """id conversation_id principal_id run_id previous_id made_conversation background asked
    created_at"""
INSERT: Final = rows.insertion("responses", COLUMNS.split())
HISTORY: Final = """SELECT * FROM messages WHERE conversation_id = $1 AND seq <= (
    SELECT max(seq) FROM messages WHERE conversation_id = $1 AND run_id = $2) ORDER BY seq"""
COPY: Final = """INSERT INTO messages (conversation_id, seq, id, run_id, role, sender, sender_name, text,
    blocks, created_at, refused) VALUES ($1, $2, $3, NULL, $4, $5, $6, $7, $8, $9, $10)"""

to_response: Final = rows.reader(StoredResponse, made_conversation=bool, background=bool, asked=jsons.loads)


class Responses(Noun):
    """Responses; they go with their conversation, or when they are old."""

    async def add(self, made: StoredResponse) -> None:
        """Store a response; one that is there stays as it is."""
        await self._change(
            f"{INSERT} ON CONFLICT DO NOTHING",
            made.id,
            made.conversation_id,
            made.principal_id,
            made.run_id,
            made.previous_id,
            int(made.made_conversation),
            int(made.background),
            jsons.dumps(made.asked),
            made.created_at,
        )

    async def get(self, response_id: str, principal_id: str | None) -> StoredResponse | None:
        """Return a principal's response (None: anybody's) or None."""
        statement = "SELECT * FROM responses WHERE id = $1 AND coalesce($2, principal_id) = principal_id"
        return await self._one(to_response, statement, response_id, principal_id)

    async def is_last(self, response: StoredResponse) -> bool:
        """Return whether nothing was said in its conversation after it."""
        newer = """SELECT 1 FROM messages WHERE conversation_id = $1 AND text IS NOT NULL AND role = 'user'
            AND seq > (SELECT max(seq) FROM messages WHERE conversation_id = $1 AND run_id = $2) LIMIT 1"""
        found = await self._engine.read(
            lambda tx: tx.fetchval(newer, response.conversation_id, response.run_id)
        )
        return found is None

    async def remove(self, response: StoredResponse) -> bool:
        """Remove a response; return whether its conversation was made for responses and has none any more."""

        async def work(tx: Tx) -> bool:
            await tx.execute("DELETE FROM responses WHERE id = $1", response.id)
            left = "SELECT count(*) FROM responses WHERE conversation_id = $1"
            return response.made_conversation and not await tx.fetchval(left, response.conversation_id)

        return await self._engine.write(work)

    async def branch(self, response: StoredResponse, conversation_id: str, now: int) -> None:
        """Make a conversation that has what was said in the response's one up to its end.

        Raises NoConversation, Suspended.
        """

        async def work(tx: Tx) -> None:
            source = await tx.fetchrow(
                "SELECT trusted FROM conversations WHERE id = $1", response.conversation_id
            )
            if source is None:
                raise NoConversation(response.conversation_id)
            told = await tx.fetch(HISTORY, response.conversation_id, response.run_id)
            await conversations.insert(
                tx,
                conversation_id,
                now,
                None,
                False,
                bool(source["trusted"]),
                principal_id=response.principal_id,
            )
            columns = ("role", "sender", "sender_name", "text", "blocks", "created_at", "refused")
            copies = [
                (conversation_id, seq, new_id(MESSAGE), *(row[name] for name in columns))
                for seq, row in enumerate(told, start=1)
            ]
            await tx.executemany(COPY, copies)
            shown = sum(row["text"] is not None for row in told)
            counted = "UPDATE conversations SET next_seq = $2, message_count = $3 WHERE id = $1"
            await tx.execute(counted, conversation_id, len(told) + 1, shown)

        await self._engine.write(work)

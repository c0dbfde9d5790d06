"""Conversations and their messages."""

from __future__ import annotations

from shared.errors import Duplicate
from shared.ids import SESSION, new_id
from shared.store.engine import Taken, Tx


async def insert(tx: Tx, conversation_id: str, now: int, owner_id: str | None, temporary: bool) -> None:
    """Add a conversation inside a transaction; raises Duplicate."""
    try:
        await tx.execute(
            """INSERT INTO conversations (id, session_id, owner_id, temporary, created_at, last_activity)
            VALUES ($1, $2, $3, $4, $5, $5)""",
            conversation_id,
            new_id(SESSION),
            owner_id or conversation_id,
            int(temporary),
            now,
        )
    except Taken:
        raise Duplicate(f"conversation_id exists already: {conversation_id}") from None

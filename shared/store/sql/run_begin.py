"""How a run begins: it takes its conversation's lease and stores the first message."""

from __future__ import annotations

from typing import Final

from shared.errors import Conflict, ConversationBusy, NoConversation
from shared.store.contract import Tx
from shared.store.rows import Row
from shared.store.sql import conversations, keys
from shared.store.sql.messages import remove_last, store_messages
from shared.store.sql.run_rows import cut_off_run
from shared.values import Lease, NewMessage, NewRun, RunState

PAUSED: Final = """SELECT state, message_id, EXISTS (SELECT 1 FROM runs AS other WHERE other.state = 'paused'
        AND other.conversation_id = runs.conversation_id AND other.message_id = runs.message_id
    ) AS paused FROM runs WHERE conversation_id = $1 ORDER BY number DESC LIMIT 1"""


async def begin(tx: Tx, new: NewRun) -> Lease:
    """Take the lease inside a transaction; raises as the contract's ``begin`` does."""
    conversation_id = new.conversation_id
    messages: tuple[NewMessage, ...] = ()
    again: Row | None = None
    if new.idempotency is not None:
        await keys.hold(tx, new.idempotency)
        again = await keys.retry_of(tx, new.idempotency, new.now)
    if again is not None:
        conversation_id = again["conversation_id"]
    elif new.create and new.message is not None:
        await conversations.insert(tx, conversation_id, new.now, new.parent_id, new.temporary)
    taken = await _take(tx, conversation_id, new.now)
    session_id = taken["session_id"]
    if again is not None:
        message_id = again["message_id"]
    elif new.message is None:
        message_id = await _paused_at(tx, conversation_id)
    else:
        message_id, messages = new.message.id, (new.message,)
        if new.replaces is not None:
            session_id = await remove_last(tx, conversation_id, new.replaces)
    await _insert(tx, new, conversation_id, taken["fence"], message_id)
    await store_messages(tx, conversation_id, new.run_id, messages, new.now)
    if new.idempotency is not None:
        await keys.keep(tx, new.idempotency, new.run_id, conversation_id, new.now)
    return Lease(
        new.run_id,
        conversation_id,
        new.owner,
        taken["fence"],
        message_id,
        session_id,
        temporary=bool(taken["temporary"]),
        trusted=bool(taken["trusted"]),
    )


async def _take(tx: Tx, conversation_id: str, now: int) -> Row:
    """Lock the conversation, end a run of it whose owner is gone, and return what a new lease tells of it."""
    taken: Row | None = await tx.fetchrow(
        """UPDATE conversations SET fence = fence + 1 WHERE id = $1
        RETURNING fence, session_id, temporary, trusted""",
        conversation_id,
    )
    if taken is None:
        raise NoConversation(conversation_id)
    # A writer may hold the row just as its lease ends: then the conversation is busy for a moment more.
    stale = await tx.fetch(
        """SELECT * FROM runs WHERE conversation_id = $1 AND state = 'running' AND lease_until <= lease_now()
        FOR UPDATE SKIP LOCKED""",
        conversation_id,
    )
    for row in stale:
        await cut_off_run(tx, row, now)
    running = await tx.fetchval(
        "SELECT 1 FROM runs WHERE conversation_id = $1 AND state = 'running'", conversation_id
    )
    if running is not None:
        raise ConversationBusy(conversation_id)
    return taken


async def _insert(tx: Tx, new: NewRun, conversation_id: str, fence: int, message_id: str) -> None:
    await tx.execute(
        """INSERT INTO runs (id, conversation_id, state, fence, lease_owner, lease_until, message_id,
            created_at, model) VALUES ($1, $2, 'running', $3, $4, lease_now() + $5::bigint, $6, $7, $8)""",
        new.run_id,
        conversation_id,
        fence,
        new.owner,
        new.lease_ms,
        message_id,
        new.now,
        new.model,
    )


async def _paused_at(tx: Tx, conversation_id: str) -> str:
    """Return the message that the conversation's paused run answers; raises Conflict.

    A run that went on after a pause and failed can be gone on with again: it answers the same message.
    """
    row = await tx.fetchrow(PAUSED, conversation_id)
    if row is None or row["state"] == RunState.SUCCESS or not row["paused"]:
        raise Conflict(f"Conversation {conversation_id} is not paused", code="not_paused")
    return str(row["message_id"])

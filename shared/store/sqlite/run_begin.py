"""How a run begins in SQLite: it takes its conversation's lease and stores the first message."""

from __future__ import annotations

import sqlite3

from shared.errors import Conflict, ConversationBusy, NoConversation
from shared.models import Lease, NewMessage, NewRun, RunState
from shared.store.sql import conversations
from shared.store.sql.messages import store_messages
from shared.store.sqlite import keys
from shared.store.sqlite.lease_clock import lease_now
from shared.store.sqlite.run_rows import end_stale
from shared.store.sqlite.transactions import SqliteTx, drive


def begin(connection: sqlite3.Connection, new: NewRun) -> Lease:
    """Take the lease inside a transaction; raises as the contract's ``begin`` does."""
    conversation_id = new.conversation_id
    messages: tuple[NewMessage, ...] = ()
    again = None if new.idempotency is None else keys.retry_of(connection, new.idempotency, new.now)
    if again is not None:
        conversation_id, message_id = again["conversation_id"], again["message_id"]
    elif new.message is None:
        message_id = _paused_at(connection, conversation_id)
    else:
        message_id, messages = new.message.id, (new.message,)
    if new.create and messages:
        drive(
            conversations.insert(SqliteTx(connection), conversation_id, new.now, new.parent_id, new.temporary)
        )
    end_stale(connection, conversation_id, new.now)
    taken = connection.execute(
        "UPDATE conversations SET fence = fence + 1 WHERE id = ? RETURNING fence, session_id, temporary",
        (conversation_id,),
    ).fetchone()
    if taken is None:
        raise NoConversation(conversation_id)
    fence, session_id, temporary = taken
    try:
        connection.execute(
            """INSERT INTO runs (id, conversation_id, state, fence, lease_owner, lease_until, message_id,
                created_at, model) VALUES (?, ?, 'running', ?, ?, ?, ?, ?, ?)""",
            (
                new.run_id,
                conversation_id,
                fence,
                new.owner,
                lease_now() + new.lease_ms,
                message_id,
                new.now,
                new.model,
            ),
        )
    except sqlite3.IntegrityError as error:
        raise ConversationBusy(conversation_id) from error
    drive(store_messages(SqliteTx(connection), conversation_id, new.run_id, messages, new.now))
    if new.idempotency is not None:
        keys.keep(connection, new.idempotency, new.run_id, conversation_id, new.now)
    return Lease(
        new.run_id, conversation_id, new.owner, fence, message_id, session_id, temporary=bool(temporary)
    )


def _paused_at(connection: sqlite3.Connection, conversation_id: str) -> str:
    """Return the message that the conversation's paused run answers; raises the reason there is none.

    A run that went on after a pause and failed can be gone on with again: it answers the same message.
    """
    if connection.execute("SELECT 1 FROM conversations WHERE id = ?", (conversation_id,)).fetchone() is None:
        raise NoConversation(conversation_id)
    row = connection.execute(
        """SELECT state, message_id, EXISTS (SELECT 1 FROM runs AS other WHERE other.state = 'paused'
            AND other.conversation_id = runs.conversation_id AND other.message_id = runs.message_id
            ) AS paused FROM runs WHERE conversation_id = ? ORDER BY number DESC LIMIT 1""",
        (conversation_id,),
    ).fetchone()
    if row is not None and row["state"] == RunState.RUNNING:
        raise ConversationBusy(conversation_id)
    if row is None or row["state"] == RunState.SUCCESS or not row["paused"]:
        raise Conflict(f"Conversation {conversation_id} is not paused", code="not_paused")
    return str(row["message_id"])

"""Adding and marking messages of a conversation, inside a transaction of whoever says them."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Final

from shared import jsons
from shared.errors import Conflict
from shared.ids import SESSION, new_id
from shared.store.contract import Tx
from shared.store.rows import insertion
from shared.values import NewMessage

COLUMNS: Final = ("id", "role", "sender", "sender_name", "text")
VALUES: Final = attrgetter(*COLUMNS)
INSERT: Final = insertion("messages", ("conversation_id", "run_id", "created_at", "seq", "blocks", *COLUMNS))

REFUSED: Final = "refused"
"""Code of a run that the model refused; its turn is marked so."""

MOST_TIMES: Final = 20
"""Refusals in a row that are counted: by then a million turns are marked."""


async def store_messages(
    tx: Tx,
    conversation_id: str,
    run_id: str | None,
    messages: Sequence[NewMessage],
    now: int,
) -> None:
    """Append messages to a conversation inside a transaction; ``run_id`` None: no run said them."""
    if not messages:
        return
    visible = sum(message.text is not None for message in messages)
    following = await tx.fetchval(
        """UPDATE conversations SET next_seq = next_seq + $2, message_count = message_count + $3,
        last_activity = greatest(last_activity, $4) WHERE id = $1 RETURNING next_seq""",
        conversation_id,
        len(messages),
        visible,
        now,
    )
    numbered = enumerate(messages, start=following - len(messages))
    await tx.executemany(
        INSERT,
        [
            (conversation_id, run_id, now, seq, jsons.dumps(message.blocks), *VALUES(message))
            for seq, message in numbered
        ],
    )


async def remove_last(tx: Tx, conversation_id: str, message_id: str) -> str:
    """Remove a conversation's last message and what followed it; return the id of the session that begins.

    With another session's id, no host takes what it has built of the conversation for what is stored. Raises
    Conflict for any other message, and for one that was summed up already.
    """
    last = await tx.fetchrow(
        """SELECT id, seq, EXISTS (SELECT 1 FROM compactions WHERE conversation_id = $1 AND through_seq >= seq
        ) AS summed_up FROM messages WHERE conversation_id = $1 AND role = 'user' AND text IS NOT NULL
        ORDER BY seq DESC LIMIT 1""",
        conversation_id,
    )
    if last is None or last["id"] != message_id:
        raise Conflict(f"replaces: {message_id} is not the last message", code="not_last_message")
    if last["summed_up"]:
        raise Conflict("replaces: the message was summed up already; say it anew", code="not_last_message")
    session_id, seq = new_id(SESSION), last["seq"]
    await tx.execute("DELETE FROM messages WHERE conversation_id = $1 AND seq >= $2", conversation_id, seq)
    await tx.execute(
        """UPDATE conversations SET session_id = $2, message_count = (
            SELECT count(text) FROM messages WHERE conversation_id = $1) WHERE id = $1""",
        conversation_id,
        session_id,
    )
    return session_id


async def mark_refused(tx: Tx, conversation_id: str) -> None:
    """Mark the newest turn, from its message on, as one that the model refused to answer.

    If it refuses again, the cause is older: 2 turns more are marked, then 4, 8 and so on, until it answers.
    """
    times = await tx.fetchval(
        """SELECT count(*) FROM runs WHERE conversation_id = $1 AND code = $2 AND number > coalesce(
            (SELECT max(number) FROM runs WHERE conversation_id = $1 AND state = 'success'), 0)""",
        conversation_id,
        REFUSED,
    )
    earlier = 2 ** min(times, MOST_TIMES) - 2
    await tx.execute(
        """UPDATE messages SET refused = 1 WHERE conversation_id = $1 AND (run_id IS NOT NULL OR $2 > 0)
        AND seq >= coalesce((SELECT seq FROM messages
            WHERE conversation_id = $1 AND role = 'user' AND text IS NOT NULL
            ORDER BY seq DESC LIMIT 1 OFFSET $2), 0)""",
        conversation_id,
        earlier,
    )

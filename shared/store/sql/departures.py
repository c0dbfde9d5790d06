"""The rows of a principal that is being deleted: they go in small transactions, whichever host goes on."""

from __future__ import annotations

from typing import Final

from shared.store.contract import Tx

# Nothing begins for a principal that is being deleted, so a conversation without a run stays without.
IDLE: Final = """SELECT id FROM conversations AS c WHERE principal_id = $1 AND NOT EXISTS (
    SELECT 1 FROM runs WHERE conversation_id = c.id AND state = 'running')
    ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED"""

MANY: Final = (
    """DELETE FROM messages WHERE (conversation_id, seq) IN (SELECT conversation_id, seq FROM messages
        WHERE conversation_id = $1 ORDER BY seq LIMIT $2)""",
    """DELETE FROM runs WHERE number IN (SELECT number FROM runs
        WHERE conversation_id = $1 ORDER BY number LIMIT $2)""",
)
"""Of these one conversation may have more than one transaction should remove."""

WITH_CONVERSATION: Final = (
    "DELETE FROM channel_updates WHERE conversation_id = $1",
    "DELETE FROM conversations WHERE id = $1",
)
"""Foreign keys take the rest along."""
AT_LEAST: Final = 10
"""Rows that a conversation counts for: its tasks, events and usage go with it."""

UNTOLD: Final = (
    "DELETE FROM webhook_events WHERE principal_id = $1",
    """DELETE FROM webhook_deliveries WHERE principal_id = $1
        OR webhook_id IN (SELECT id FROM webhooks WHERE principal_id = $1)""",
    "DELETE FROM webhooks WHERE principal_id = $1",
)
"""A principal that is being deleted is told nothing any more, and nothing is told of it."""

AT_LAST: Final = (
    *UNTOLD,
    "DELETE FROM tokens WHERE principal_id = $1",
    "DELETE FROM usage_by_day WHERE principal_id = $1",
    # The next character after "+" is ",".
    "DELETE FROM idempotency_keys WHERE route >= $1 || '+' AND route < $1 || ','",
    """UPDATE principals SET status = 'deleted', name = '', terms = '{}', revision = revision + 1
        WHERE id = $1""",
)

OF_CONVERSATIONS: Final = (
    "messages", "runs", "compactions", "scheduled_tasks", "outbound_messages", "usage_by_conversation",
    "channel_chats", "channel_updates", "channel_deliveries",
)  # fmt: skip
LOOKED_FOR: Final = {
    **{
        table: f"""SELECT count(*) FROM {table} AS t LEFT JOIN conversations AS c ON c.id = t.conversation_id
            WHERE c.principal_id = $1 OR (t.conversation_id >= $1 || '+' AND t.conversation_id < $1 || ',')"""
        for table in OF_CONVERSATIONS
    },
    **{
        table: f"SELECT count(*) FROM {table} WHERE principal_id = $1"
        for table in (
            "conversations",
            "tokens",
            "usage_by_day",
            "webhooks",
            "webhook_events",
            "webhook_deliveries",
        )
    },
    "idempotency_keys": """SELECT count(*) FROM idempotency_keys
        WHERE route >= $1 || '+' AND route < $1 || ','""",
}
"""What counts a principal's rows, by table; what else there is goes with these by foreign keys."""


async def remains(tx: Tx, principal_id: str) -> dict[str, int]:
    """Return how many rows of the principal each table has; every table is looked through."""
    return {table: int(await tx.fetchval(count, principal_id)) for table, count in LOOKED_FOR.items()}


async def step(tx: Tx, principal_id: str, limit: int) -> int:
    """Remove some rows of the principal, at last all but its tombstone; 0: a run of it has not ended yet."""
    gone = 0
    while gone < limit:
        conversation_id = await tx.fetchval(IDLE, principal_id)
        if conversation_id is None:
            return gone or await _finish(tx, principal_id)
        for statement in MANY:
            gone += await tx.execute(statement, conversation_id, max(0, limit - gone))
        if gone < limit:
            for statement in WITH_CONVERSATION:
                gone += AT_LEAST * await tx.execute(statement, conversation_id)
    return gone


async def _finish(tx: Tx, principal_id: str) -> int:
    left = await tx.fetchval("SELECT 1 FROM conversations WHERE principal_id = $1 LIMIT 1", principal_id)
    if left is not None:
        return 0
    return sum([await tx.execute(statement, principal_id) for statement in AT_LAST])

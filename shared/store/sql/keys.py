"""Idempotency keys: what a caller's key stands for, inside a transaction of somebody else's."""

from __future__ import annotations

from shared import jsons
from shared.errors import Conflict, KeyTaken
from shared.store.contract import Row, Tx
from shared.store.sql.retention import KEY_LIFE_MS
from shared.values import Idempotency, KeyedAnswer


async def hold(tx: Tx, idempotency: Idempotency) -> None:
    """Let no other host decide what this key stands for until the transaction ends."""
    await tx.lock("key", f"{idempotency.route} {idempotency.key}")


async def keyed(tx: Tx, idempotency: Idempotency, now: int) -> KeyedAnswer | None:
    """Return what a key of the last 24 h stands for; raises Conflict for another body."""
    statement = """SELECT digest, subject, conversation_id, status, body FROM idempotency_keys
        WHERE route = $1 AND key = $2 AND created_at > $3"""
    row = await tx.fetchrow(statement, idempotency.route, idempotency.key, now - KEY_LIFE_MS)
    if row is None:
        return None
    if row["digest"] != idempotency.digest:
        raise Conflict(
            "Idempotency-Key: was used with another body; use a new key for a new request",
            code="idempotency_mismatch",
        )
    body = None if row["body"] is None else jsons.loads(row["body"])
    return KeyedAnswer(row["subject"], row["conversation_id"], row["status"], body)


async def retry_of(tx: Tx, idempotency: Idempotency, now: int, *, allowed: bool = True) -> Row | None:
    """Return the cut-off run that this key may retry (if that is ``allowed``); raises KeyTaken when it stands
    for anything else.
    """
    answer = await keyed(tx, idempotency, now)
    if answer is None:
        return None
    statement = """SELECT * FROM runs WHERE id = $1 AND code = 'retryable'
        AND $2 AND NOT EXISTS (SELECT 1 FROM runs AS next WHERE next.previous_id = $1)"""
    row = await tx.fetchrow(statement, answer.subject, allowed)
    if row is None:
        raise KeyTaken(answer)
    return row


async def keep(tx: Tx, idempotency: Idempotency, subject: str, conversation_id: str | None, now: int) -> None:
    """Let the key stand for a run or another subject from now on."""
    statement = """INSERT INTO idempotency_keys (route, key, digest, subject, conversation_id, created_at)
        VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (route, key) DO UPDATE SET
            digest = excluded.digest, subject = excluded.subject, created_at = excluded.created_at,
            conversation_id = excluded.conversation_id, status = NULL, body = NULL"""
    await tx.execute(
        statement, idempotency.route, idempotency.key, idempotency.digest, subject, conversation_id, now
    )

"""What a run or a claim holds while it lasts: its lease, and a caller's idempotency key.

Every statement of a lease names the row, its fencing number and its owner, and wants the lease to be alive by
the database's clock: a host that was overtaken, or slept through its lease, changes nothing. The same holds
for the rows of tasks' slots.
"""

from collections.abc import Sequence
from typing import Any, Final

from shared import jsons
from shared.errors import Conflict, KeyTaken, LeaseLost
from shared.store.contract import Row, Tx
from shared.store.sql.retention import KEY_LIFE_MS
from shared.task_values import TaskRun
from shared.values import Idempotency, KeyedAnswer, Lease

ALIVE: Final = "state = 'running' AND lease_until > lease_now()"
HELD_CLAIM: Final = f"id = $1 AND fence = $2 AND owner = $3 AND {ALIVE}"
HELD_RUN: Final = f"id = $1 AND fence = $2 AND lease_owner = $3 AND {ALIVE}"


async def hold(tx: Tx, holder: Lease | TaskRun, assignments: str, *values: Any) -> None:
    """Write into the row of a run or of a claim, which stays locked until the end; raises LeaseLost.

    The first of ``values`` is ``$4``.
    """
    if isinstance(holder, Lease):
        held, name = f"runs SET {assignments} WHERE {HELD_RUN}", holder.run_id
    else:
        held, name = f"task_runs SET {assignments} WHERE {HELD_CLAIM}", holder.id
    if not await tx.execute(f"UPDATE {held}", name, holder.fence, holder.owner, *values):
        raise LeaseLost(name)


async def those_held(tx: Tx, leases: Sequence[Lease]) -> set[str]:
    """Return which of the runs' leases are alive; nobody overtakes those until the transaction ends."""
    found = await tx.fetch(
        f"""SELECT id FROM runs WHERE (id, fence, lease_owner) IN
            (SELECT * FROM unnest($1::text[], $2::bigint[], $3::text[])) AND {ALIVE} ORDER BY id FOR SHARE""",
        [lease.run_id for lease in leases],
        [lease.fence for lease in leases],
        [lease.owner for lease in leases],
    )
    return {row["id"] for row in found}


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


async def keep_key(
    tx: Tx, idempotency: Idempotency, subject: str, conversation_id: str | None, now: int
) -> None:
    """Let the key stand for a run or another subject from now on."""
    statement = """INSERT INTO idempotency_keys (route, key, digest, subject, conversation_id, created_at)
        VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (route, key) DO UPDATE SET
            digest = excluded.digest, subject = excluded.subject, created_at = excluded.created_at,
            conversation_id = excluded.conversation_id, status = NULL, body = NULL"""
    await tx.execute(
        statement, idempotency.route, idempotency.key, idempotency.digest, subject, conversation_id, now
    )

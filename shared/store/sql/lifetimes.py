"""How long rows hold: what a run or a claim holds while it lasts, callers' keys, and what retention removes.

Every statement of a lease names the row, its fencing number and its owner, and wants the lease to be alive by
the database's clock: a host that was overtaken, or slept through its lease, changes nothing. The same holds
for the rows of tasks' slots. What retention no longer keeps is removed in small transactions; of several
hosts one does it at a time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from shared import jsons
from shared.clock import DAY_MS
from shared.errors import Conflict, KeyTaken, LeaseLost
from shared.store.contract import Engine, Row, Tx, Work
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


async def keyed_alone(tx: Tx, idempotency: Idempotency, now: int) -> KeyedAnswer | None:
    """Return ``keyed``; nobody else decides what the key stands for until the transaction ends."""
    await tx.lock("key", f"{idempotency.route} {idempotency.key}")
    return await keyed(tx, idempotency, now)


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
    answer = await keyed_alone(tx, idempotency, now)
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


KEY_LIFE_MS: Final = DAY_MS
"""How long an idempotency key is kept, in milliseconds (http-api: "Idempotency")."""


@dataclass(frozen=True, slots=True)
class Retention:
    """Delivered outbound messages, run events, channels' ended work, what is left of deleted principals,
    requests that people decided, the audit, what webhooks were told and couldn't be told, responses, in
    milliseconds; run logs in rows.
    """

    outbound_ms: int = 7 * DAY_MS
    task_log: int = 100
    events_ms: int = DAY_MS
    updates_ms: int = 7 * DAY_MS
    tombstones_ms: int = 90 * DAY_MS
    approvals_ms: int = 90 * DAY_MS
    audit_ms: int = 365 * DAY_MS
    delivered_ms: int = 7 * DAY_MS
    dead_ms: int = 30 * DAY_MS
    responses_ms: int = 30 * DAY_MS


LOOK_AT: Final = 1000
"""Run log rows looked at in one round, to find the tasks that have too many."""

OUTBOUND: Final = """DELETE FROM outbound_messages WHERE seq IN (SELECT seq FROM outbound_messages
    WHERE delivered_at <= $1 ORDER BY delivered_at LIMIT $2)"""
# Their ids are kept for as long as a channel could bring the same update once more.
UPDATES: Final = """DELETE FROM channel_updates WHERE number IN (SELECT number FROM channel_updates
    WHERE settled_at <= $1 ORDER BY settled_at LIMIT $2)"""
DELIVERIES: Final = """DELETE FROM channel_deliveries WHERE number IN (SELECT number FROM channel_deliveries
    WHERE ended_at <= $1 AND untold = 0 ORDER BY ended_at LIMIT $2)"""
EVENTS: Final = """DELETE FROM run_events WHERE (run_id, seq) IN (SELECT run_id, seq FROM run_events
    WHERE created_at <= $1 ORDER BY created_at LIMIT $2)"""
KEYS: Final = """DELETE FROM idempotency_keys WHERE (route, key) IN (SELECT route, key FROM idempotency_keys
    WHERE created_at <= $1 ORDER BY created_at LIMIT $2)"""
TOMBSTONES: Final = """DELETE FROM principals WHERE number IN (SELECT number FROM principals
    WHERE status = 'deleted' AND deleted_at <= $1 ORDER BY number LIMIT $2)"""
# What is remembered of a conversation is a request that was allowed.
APPROVALS: Final = """DELETE FROM approvals WHERE number IN (SELECT number FROM approvals
    WHERE ended_at <= $1 AND remembered = 0 ORDER BY ended_at LIMIT $2)"""
AUDIT: Final = """DELETE FROM audit WHERE number IN (SELECT number FROM audit
    WHERE created_at <= $1 ORDER BY created_at LIMIT $2)"""
HEARD: Final = """DELETE FROM webhook_deliveries WHERE number IN (SELECT number FROM webhook_deliveries
    WHERE status = 'delivered' AND ended_at <= $1 ORDER BY ended_at LIMIT $2)"""
UNHEARD_BODIES: Final = """UPDATE webhook_deliveries SET data = NULL WHERE number IN (
    SELECT number FROM webhook_deliveries
    WHERE status = 'dead' AND data IS NOT NULL AND ended_at <= $1 ORDER BY ended_at LIMIT $2)"""
UNHEARD: Final = """DELETE FROM webhook_deliveries WHERE number IN (SELECT number FROM webhook_deliveries
    WHERE status = 'dead' AND ended_at <= $1 ORDER BY ended_at LIMIT $2)"""
# Those of single requests go when nothing is left to be told.
HEARERS: Final = """DELETE FROM webhooks WHERE number IN (SELECT number FROM webhooks AS w
    WHERE created_at <= $1 AND subject NOT IN (principal_id, '*')
    AND NOT EXISTS (SELECT 1 FROM webhook_deliveries AS d WHERE d.webhook_id = w.id)
    AND NOT EXISTS (SELECT 1 FROM webhook_events AS e WHERE e.root_id = w.subject)
    AND NOT EXISTS (SELECT 1 FROM runs AS r WHERE (r.id = w.subject OR r.root_id = w.subject)
        AND r.state IN ('running', 'paused')
        AND NOT EXISTS (SELECT 1 FROM runs AS n WHERE n.previous_id = r.id)) ORDER BY number LIMIT $2)"""
RESPONSES: Final = """DELETE FROM responses WHERE number IN (SELECT number FROM responses
    WHERE created_at <= $1 ORDER BY created_at LIMIT $2)"""

# Conversations of isolated task runs and subagents belong to another one; a task's own one does not.
UNUSED: Final = """temporary = 1 AND owner_id <> id
    AND NOT EXISTS (SELECT 1 FROM task_runs WHERE conversation_id = c.id)
    AND NOT EXISTS (SELECT 1 FROM runs WHERE conversation_id = c.id AND state = 'running')
    AND NOT EXISTS (SELECT 1 FROM approvals WHERE conversation_id = c.id AND ended_at IS NULL)
    AND NOT EXISTS (SELECT 1 FROM webhook_events WHERE conversation_id = c.id)
    AND NOT EXISTS (SELECT 1 FROM webhook_deliveries WHERE conversation_id = c.id AND status = 'waiting')"""
ORPHANS: Final = f"""SELECT id FROM conversations AS c WHERE {UNUSED} AND last_activity < $1
    ORDER BY last_activity LIMIT $2"""
OLD_LOG: Final = """SELECT number, conversation_id FROM task_runs
    WHERE task_id = $1 AND finished_at IS NOT NULL
    AND number <= (SELECT number FROM task_runs WHERE task_id = $1 ORDER BY number DESC LIMIT 1 OFFSET $2)
    ORDER BY number LIMIT $3"""


class Pruner:
    """Removes what retention no longer keeps, a limited number of rows per call."""

    def __init__(self, engine: Engine, retention: Retention) -> None:
        self._engine = engine
        self._keep = retention
        self._log_seen = 0

    async def prune(self, now: int, limit: int) -> int:
        """Remove at most ``limit`` rows (a conversation counts as one); returns how many went."""
        keep = self._keep
        gone = 0
        for statement, age_ms in (
            (OUTBOUND, keep.outbound_ms),
            (UPDATES, keep.updates_ms),
            (DELIVERIES, keep.updates_ms),
            (EVENTS, keep.events_ms),
            (KEYS, KEY_LIFE_MS),
            (TOMBSTONES, keep.tombstones_ms),
            (APPROVALS, keep.approvals_ms),
            (AUDIT, keep.audit_ms),
            (HEARD, keep.delivered_ms),
            (UNHEARD_BODIES, keep.delivered_ms),
            (UNHEARD, keep.dead_ms),
            (HEARERS, keep.dead_ms),
            (RESPONSES, keep.responses_ms),
        ):
            gone += await self._rows(statement, now - age_ms, limit - gone)
        gone += await self._task_logs(limit - gone)
        return gone + await self._orphans(now, limit - gone)

    async def _rows(self, statement: str, before: int, limit: int) -> int:
        return await self._alone(lambda tx: tx.execute(statement, before, limit)) if limit else 0

    async def _alone(self, step: Work[int]) -> int:
        async def work(tx: Tx) -> int:
            return await step(tx) if await tx.try_lock("prune") else 0

        return await self._engine.write(work, long=True)

    async def _task_logs(self, limit: int) -> int:
        async def work(tx: Tx) -> int:
            statement = "SELECT number, task_id FROM task_runs WHERE number > $1 ORDER BY number LIMIT $2"
            seen = await tx.fetch(statement, self._log_seen, LOOK_AT)
            gone = 0
            for task_id in {row["task_id"] for row in seen}:
                gone += await self._one_log(tx, task_id, limit - gone)
                if gone >= limit:
                    return gone
            self._log_seen = seen[-1]["number"] if seen else self._log_seen
            return gone

        return await self._alone(work) if limit else 0

    async def _one_log(self, tx: Tx, task_id: str, limit: int) -> int:
        old = await tx.fetch(OLD_LOG, task_id, self._keep.task_log, limit)
        await tx.execute(
            "DELETE FROM task_runs WHERE number = ANY($1::bigint[])", [row["number"] for row in old]
        )
        await _remove_conversations(tx, [row["conversation_id"] for row in old if row["conversation_id"]])
        return len(old)

    async def _orphans(self, now: int, limit: int) -> int:
        # Looked for without a transaction: where many must stay, that takes longer than others shall wait.
        found = await self._engine.read(
            lambda tx: tx.fetch(ORPHANS, now - self._keep.events_ms, limit), long=True
        )
        ids = [row["id"] for row in found]
        return await self._alone(lambda tx: _remove_conversations(tx, ids)) if ids else 0


async def _remove_conversations(tx: Tx, ids: Sequence[str]) -> int:
    """Remove temporary conversations of others that no log row and no running run needs any more."""
    if not ids:
        return 0
    # Whoever begins a run locks its conversation: locked first, then looked at, none is lost to a new run.
    free = await tx.fetch(
        "SELECT id FROM conversations WHERE id = ANY($1::text[]) ORDER BY id FOR UPDATE SKIP LOCKED",
        list(ids),
    )
    return await tx.execute(
        f"DELETE FROM conversations AS c WHERE id = ANY($1::text[]) AND {UNUSED}", [row["id"] for row in free]
    )

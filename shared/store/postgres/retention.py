"""Removing what retention no longer keeps, in small transactions; of several hosts one does it at a time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from shared.store.postgres.database import Database
from shared.store.postgres.driver import Connection
from shared.store.postgres.locks import try_lock
from shared.store.retention import KEY_LIFE_MS, Retention

LOOK_AT: Final = 1000
"""Run log rows looked at in one round, to find the tasks that have too many."""

Step = Callable[[Connection, int, int], Awaitable[int]]
"""Removes at most ``limit`` rows as of ``now``; returns how many."""

# Conversations of isolated task runs and subagents belong to another one; a task's own one does not.
UNUSED: Final = """temporary = 1 AND owner_id <> id
    AND NOT EXISTS (SELECT 1 FROM task_runs WHERE conversation_id = c.id)
    AND NOT EXISTS (SELECT 1 FROM runs WHERE conversation_id = c.id AND state = 'running')"""
ORPHANS: Final = f"""SELECT id FROM conversations AS c WHERE {UNUSED} AND last_activity < $1
    ORDER BY last_activity LIMIT $2"""
OLD_LOG: Final = """SELECT number, conversation_id FROM task_runs WHERE task_id = $1 AND state <> 'running'
    AND number <= (SELECT number FROM task_runs WHERE task_id = $1 ORDER BY number DESC LIMIT 1 OFFSET $2)
    ORDER BY number LIMIT $3"""


class Pruner:
    """Removes what retention no longer keeps, a limited number of rows per call."""

    def __init__(self, database: Database, retention: Retention) -> None:
        self._db = database
        self._keep = retention
        self._log_seen = 0

    async def prune(self, now: int, limit: int) -> int:
        """Remove at most ``limit`` rows (a conversation counts as one); returns how many went."""
        gone = 0
        for step in (
            self._outbound,
            self._updates,
            self._deliveries,
            self._events,
            self._keys,
            self._task_logs,
            self._orphans,
            self._marks,
        ):
            if gone < limit:
                gone += await self._db.write(self._alone(step, now, limit - gone))
        return gone

    def _alone(self, step: Step, now: int, limit: int) -> Callable[[Connection], Awaitable[int]]:
        async def work(connection: Connection) -> int:
            return await step(connection, now, limit) if await try_lock(connection, "prune") else 0

        return work

    async def _outbound(self, connection: Connection, now: int, limit: int) -> int:
        return await _deleted(
            connection,
            """DELETE FROM outbound_messages WHERE seq IN (SELECT seq FROM outbound_messages
            WHERE delivered_at <= $1 ORDER BY delivered_at LIMIT $2)""",
            now - self._keep.outbound_ms,
            limit,
        )

    async def _updates(self, connection: Connection, now: int, limit: int) -> int:
        # Their ids are kept for as long as a channel could bring the same update once more.
        return await _deleted(
            connection,
            """DELETE FROM channel_updates WHERE number IN (SELECT number FROM channel_updates
            WHERE settled_at <= $1 ORDER BY settled_at LIMIT $2)""",
            now - self._keep.updates_ms,
            limit,
        )

    async def _deliveries(self, connection: Connection, now: int, limit: int) -> int:
        return await _deleted(
            connection,
            """DELETE FROM channel_deliveries WHERE number IN (SELECT number FROM channel_deliveries
            WHERE ended_at <= $1 AND untold = 0 ORDER BY ended_at LIMIT $2)""",
            now - self._keep.updates_ms,
            limit,
        )

    async def _events(self, connection: Connection, now: int, limit: int) -> int:
        return await _deleted(
            connection,
            """DELETE FROM run_events WHERE (run_id, seq) IN (SELECT run_id, seq FROM run_events
            WHERE created_at <= $1 ORDER BY created_at, run_id, seq LIMIT $2)""",
            now - self._keep.events_ms,
            limit,
        )

    async def _marks(self, connection: Connection, now: int, limit: int) -> int:
        # Nobody asks what became of a commit for longer than a run waits; the clock is the marks' own.
        done = await connection.execute(
            """DELETE FROM commit_marks WHERE mark IN (SELECT mark FROM commit_marks
            WHERE made_at <= now() - interval '1 hour' ORDER BY made_at LIMIT $1)""",
            limit,
        )
        return int(done.split()[-1])

    async def _keys(self, connection: Connection, now: int, limit: int) -> int:
        return await _deleted(
            connection,
            """DELETE FROM idempotency_keys WHERE (route, key) IN (SELECT route, key FROM idempotency_keys
            WHERE created_at <= $1 ORDER BY created_at LIMIT $2)""",
            now - KEY_LIFE_MS,
            limit,
        )

    async def _task_logs(self, connection: Connection, now: int, limit: int) -> int:
        seen = await connection.fetch(
            "SELECT number, task_id FROM task_runs WHERE number > $1 ORDER BY number LIMIT $2",
            self._log_seen,
            LOOK_AT,
        )
        gone = 0
        for task_id in {row["task_id"] for row in seen}:
            gone += await self._one_log(connection, task_id, limit - gone)
            if gone >= limit:
                return gone
        self._log_seen = seen[-1]["number"] if seen else self._log_seen
        return gone

    async def _one_log(self, connection: Connection, task_id: str, limit: int) -> int:
        old = await connection.fetch(OLD_LOG, task_id, self._keep.task_log, limit)
        await connection.execute(
            "DELETE FROM task_runs WHERE number = ANY($1::bigint[])", [row["number"] for row in old]
        )
        conversations = [row["conversation_id"] for row in old if row["conversation_id"]]
        await _remove_conversations(connection, conversations)
        return len(old)

    async def _orphans(self, connection: Connection, now: int, limit: int) -> int:
        found = await connection.fetch(ORPHANS, now - self._keep.events_ms, limit)
        return await _remove_conversations(connection, [row["id"] for row in found])


async def _remove_conversations(connection: Connection, ids: list[str]) -> int:
    """Remove temporary conversations of others that no log row and no running run needs any more."""
    if not ids:
        return 0
    # Whoever begins a run locks its conversation: locked first, then looked at, none is lost to a new run.
    free = await connection.fetch(
        "SELECT id FROM conversations WHERE id = ANY($1::text[]) ORDER BY id FOR UPDATE SKIP LOCKED", ids
    )
    return await _deleted(
        connection,
        f"DELETE FROM conversations AS c WHERE id = ANY($1::text[]) AND {UNUSED}",
        [row["id"] for row in free],
    )


async def _deleted(connection: Connection, statement: str, *values: object) -> int:
    """Run a DELETE and return how many rows went, as its tag says."""
    return int((await connection.execute(statement, *values)).rpartition(" ")[2])

"""Removing what retention no longer keeps, in small transactions off the event loop."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Final

from shared.store.retention import KEY_LIFE_MS, Retention
from shared.store.sqlite.engine import Database

LOOK_AT: Final = 1000
"""Run log rows looked at in one round, to find the tasks that have too many."""

Step = Callable[[sqlite3.Connection, int, int], int]
"""Removes at most ``limit`` rows as of ``now``; returns how many."""

# Conversations of isolated task runs and subagents belong to another one; a task's own one does not.
ORPHANS: Final = """SELECT id FROM conversations AS c WHERE temporary = 1 AND owner_id <> id
    AND last_activity < ? AND NOT EXISTS (SELECT 1 FROM task_runs WHERE conversation_id = c.id)
    AND NOT EXISTS (SELECT 1 FROM runs WHERE conversation_id = c.id AND state = 'running')
    ORDER BY last_activity LIMIT ?"""


class Pruner:
    """Removes what retention no longer keeps, a limited number of rows per call."""

    def __init__(self, database: Database, retention: Retention) -> None:
        self._db = database
        self._keep = retention
        self._log_seen = 0

    async def prune(self, now: int, limit: int) -> int:
        """Remove at most ``limit`` rows (a conversation counts as one); returns how many went."""
        gone = 0
        steps = (self._outbound, self._updates, self._deliveries, self._events, self._keys, self._task_logs)
        for step in steps:
            gone += await self._db.write_apart(self._bound(step, now, limit - gone))
        orphans = await self._db.read_apart(
            lambda connection: connection.execute(
                ORPHANS, (now - self._keep.events_ms, limit - gone)
            ).fetchall()
        )
        if orphans:
            gone += await self._db.write_apart(
                lambda connection: _remove_conversations(connection, [row[0] for row in orphans])
            )
        return gone

    def _bound(self, step: Step, now: int, limit: int) -> Callable[[sqlite3.Connection], int]:
        return lambda connection: step(connection, now, limit) if limit > 0 else 0

    def _outbound(self, connection: sqlite3.Connection, now: int, limit: int) -> int:
        return connection.execute(
            """DELETE FROM outbound_messages WHERE seq IN (SELECT seq FROM outbound_messages
            WHERE delivered_at <= ? ORDER BY delivered_at LIMIT ?)""",
            (now - self._keep.outbound_ms, limit),
        ).rowcount

    def _updates(self, connection: sqlite3.Connection, now: int, limit: int) -> int:
        # Their ids are kept for as long as a channel could bring the same update once more.
        return connection.execute(
            """DELETE FROM channel_updates WHERE number IN (SELECT number FROM channel_updates
            WHERE settled_at <= ? ORDER BY settled_at LIMIT ?)""",
            (now - self._keep.updates_ms, limit),
        ).rowcount

    def _deliveries(self, connection: sqlite3.Connection, now: int, limit: int) -> int:
        return connection.execute(
            """DELETE FROM channel_deliveries WHERE number IN (SELECT number FROM channel_deliveries
            WHERE ended_at <= ? AND untold = 0 ORDER BY ended_at LIMIT ?)""",
            (now - self._keep.updates_ms, limit),
        ).rowcount

    def _events(self, connection: sqlite3.Connection, now: int, limit: int) -> int:
        return connection.execute(
            """DELETE FROM run_events WHERE (run_id, seq) IN (SELECT run_id, seq FROM run_events
            WHERE created_at <= ? ORDER BY created_at LIMIT ?)""",
            (now - self._keep.events_ms, limit),
        ).rowcount

    def _keys(self, connection: sqlite3.Connection, now: int, limit: int) -> int:
        return connection.execute(
            """DELETE FROM idempotency_keys WHERE rowid IN (SELECT rowid FROM idempotency_keys
            WHERE created_at <= ? ORDER BY created_at LIMIT ?)""",
            (now - KEY_LIFE_MS, limit),
        ).rowcount

    def _task_logs(self, connection: sqlite3.Connection, now: int, limit: int) -> int:
        seen = connection.execute(
            "SELECT number, task_id FROM task_runs WHERE number > ? ORDER BY number LIMIT ?",
            (self._log_seen, LOOK_AT),
        ).fetchall()
        gone = 0
        for task_id in {row["task_id"] for row in seen}:
            gone += self._one_log(connection, task_id, limit - gone)
            if gone >= limit:
                return gone
        self._log_seen = seen[-1]["number"] if seen else self._log_seen
        return gone

    def _one_log(self, connection: sqlite3.Connection, task_id: str, limit: int) -> int:
        old = connection.execute(
            """SELECT number, conversation_id FROM task_runs WHERE task_id = ?1 AND state <> 'running'
            AND number <= (SELECT number FROM task_runs WHERE task_id = ?1
                ORDER BY number DESC LIMIT 1 OFFSET ?2) ORDER BY number LIMIT ?3""",
            (task_id, self._keep.task_log, limit),
        ).fetchall()
        connection.executemany("DELETE FROM task_runs WHERE number = ?", [(row["number"],) for row in old])
        _remove_conversations(connection, [row["conversation_id"] for row in old if row["conversation_id"]])
        return len(old)


def _remove_conversations(connection: sqlite3.Connection, ids: list[str]) -> int:
    """Remove temporary conversations of others that no log row and no running run needs any more."""
    gone = 0
    for conversation_id in ids:
        gone += connection.execute(
            """DELETE FROM conversations WHERE id = ?1 AND temporary = 1 AND owner_id <> id
            AND NOT EXISTS (SELECT 1 FROM task_runs WHERE conversation_id = ?1)
            AND NOT EXISTS (SELECT 1 FROM runs WHERE conversation_id = ?1 AND state = 'running')""",
            (conversation_id,),
        ).rowcount
    return gone

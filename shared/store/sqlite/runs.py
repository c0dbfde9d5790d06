"""Runs in SQLite: the lease, the steps, the events, the idempotency keys."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

from shared import jsons
from shared.errors import LeaseLost
from shared.models import (
    Event,
    Idempotency,
    KeyedAnswer,
    Lease,
    NewMessage,
    NewRun,
    Page,
    Run,
    RunEnd,
    Spending,
)
from shared.store import rows
from shared.store.cut_off import ACTED, AHEAD
from shared.store.sql.messages import mark_refused, store_messages
from shared.store.sqlite import keys, usage
from shared.store.sqlite.engine import Database
from shared.store.sqlite.lease_clock import lease_now
from shared.store.sqlite.run_begin import begin
from shared.store.sqlite.run_rows import (
    cut_off_run,
    hold,
    is_held,
    record_events,
)
from shared.store.sqlite.transactions import SqliteTx, drive


class SqliteRuns:
    """Implements the Runs contract."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def begin(self, new: NewRun) -> Lease:
        """Take the conversation's lease and store the first message, or leave no trace."""
        return await self._db.write(lambda connection: begin(connection, new))

    async def renew(self, leases: Sequence[Lease], lease_ms: int) -> set[str]:
        """Prolong leases in one transaction; return the ids of the runs whose lease is lost."""

        def work(connection: sqlite3.Connection) -> set[str]:
            lost = set()
            for lease in leases:
                try:
                    hold(connection, lease, "lease_until = ?", lease_now() + lease_ms)
                except LeaseLost:
                    lost.add(lease.run_id)
            return lost

        return await self._db.write(work) if leases else set()

    async def append(
        self,
        lease: Lease,
        messages: Sequence[NewMessage],
        now: int,
        *,
        effect_ahead: bool = False,
        spent: Spending | None = None,
    ) -> None:
        """Store finished steps and what they spent; raises LeaseLost."""

        def work(connection: sqlite3.Connection) -> None:
            hold(
                connection,
                lease,
                f"""effect_ahead = (effect_ahead & {ACTED}) | ?,
                reserved_tokens = 0, reserved_microdollars = 0""",
                AHEAD | ACTED if effect_ahead else 0,
            )
            drive(store_messages(SqliteTx(connection), lease.conversation_id, lease.run_id, messages, now))
            if spent is not None:
                usage.count(connection, lease.conversation_id, spent, now)

        await self._db.write(work)

    async def record(self, told: Sequence[tuple[Lease, Sequence[Event]]], now: int) -> set[str]:
        """Store events of several runs (again is harmless); return the ids of those whose lease is lost."""
        if not told:
            return set()

        def work(connection: sqlite3.Connection) -> set[str]:
            lost = set()
            for lease, events in told:
                if is_held(connection, lease):
                    record_events(connection, lease.run_id, events, now)
                else:
                    lost.add(lease.run_id)
            return lost

        return await self._db.write(work)

    async def finish(
        self,
        lease: Lease,
        end: RunEnd,
        messages: Sequence[NewMessage],
        events: Sequence[Event],
        now: int,
    ) -> None:
        """End the run with its last messages and events, and give the lease back; raises LeaseLost."""

        def work(connection: sqlite3.Connection) -> None:
            hold(
                connection,
                lease,
                "state = ?, finished_at = ?, model = ?, usage = ?, error = ?, code = ?, answer = ?",
                end.state,
                now,
                end.model,
                rows.usage_text(end.usage),
                end.error,
                end.code,
                jsons.dumps(end.answer),
            )
            drive(store_messages(SqliteTx(connection), lease.conversation_id, lease.run_id, messages, now))
            if end.code == rows.REFUSED:
                drive(mark_refused(SqliteTx(connection), lease.conversation_id))
            record_events(connection, lease.run_id, events, now)
            usage.count(connection, lease.conversation_id, end.spending, now, runs=1)

        await self._db.write(work)

    async def get(self, conversation_id: str, run_id: str) -> Run | None:
        """Return a run of the conversation or None."""
        return await self._one("conversation_id = ? AND id = ?", conversation_id, run_id)

    async def active(self, conversation_id: str) -> Run | None:
        """Return the conversation's running run or None."""
        return await self._one("conversation_id = ? AND state = 'running'", conversation_id)

    async def page(self, conversation_id: str, *, limit: int, cursor: str | None) -> Page[Run]:
        """Return the conversation's runs, newest first."""
        before = rows.decode_cursor(cursor, int) or [2**62]

        def work(connection: sqlite3.Connection) -> Page[Run]:
            found = connection.execute(
                "SELECT * FROM runs WHERE conversation_id = ? AND number < ? ORDER BY number DESC LIMIT ?",
                (conversation_id, *before, limit + 1),
            ).fetchall()
            return rows.page(found, limit, rows.run, lambda row: (row["number"],))

        return await self._db.read(work)

    async def events(self, run_id: str, *, after: int, limit: int = 1000) -> list[Event]:
        """Return stored events with a larger ``seq``, in order."""

        def work(connection: sqlite3.Connection) -> list[Event]:
            found = connection.execute(
                "SELECT seq, name, data FROM run_events WHERE run_id = ? AND seq > ? ORDER BY seq LIMIT ?",
                (run_id, after, limit),
            )
            return [rows.event(row) for row in found]

        return await self._db.read(work)

    async def recover(self, now: int, *, all_but: str | None = None) -> list[str]:
        """End running runs whose lease ran out, or that anyone but ``all_but`` holds."""

        def work(connection: sqlite3.Connection) -> list[str]:
            stale = connection.execute(
                """SELECT * FROM runs WHERE state = 'running'
                AND (lease_until <= ?1 OR (?2 IS NOT NULL AND lease_owner <> ?2))""",
                (lease_now(), all_but),
            ).fetchall()
            for row in stale:
                cut_off_run(connection, row, now)
            return [row["id"] for row in stale]

        return await self._db.write(work)

    async def ask_cancel(self, conversation_id: str) -> str | None:
        """Note that the conversation's running run is to stop; returns its id, None if there is none."""

        def work(connection: sqlite3.Connection) -> str | None:
            row = connection.execute(
                """UPDATE runs SET cancel_asked = 1 WHERE conversation_id = ? AND state = 'running'
                RETURNING id""",
                (conversation_id,),
            ).fetchone()
            return None if row is None else str(row["id"])

        return await self._db.write(work)

    async def cancels_asked(self, owner: str) -> list[str]:
        """Return the ids of the owner's running runs that somebody wants to stop."""

        def work(connection: sqlite3.Connection) -> list[str]:
            found = connection.execute(
                "SELECT id FROM runs WHERE lease_owner = ? AND state = 'running' AND cancel_asked = 1",
                (owner,),
            )
            return [row["id"] for row in found]

        return await self._db.read(work)

    async def keyed(self, idempotency: Idempotency, now: int) -> KeyedAnswer | None:
        """Return what a key of the last 24 h stands for, or None."""
        return await self._db.read(lambda connection: keys.keyed(connection, idempotency, now))

    async def keep_answer(
        self, idempotency: Idempotency, subject: str, status: int, body: dict[str, Any], now: int
    ) -> None:
        """Store the answer for a key (routes that are not runs)."""

        def work(connection: sqlite3.Connection) -> None:
            keys.keep(connection, idempotency, subject, body.get("conversation_id"), now)
            connection.execute(
                "UPDATE idempotency_keys SET status = ?, body = ? WHERE route = ? AND key = ?",
                (status, jsons.dumps(body), idempotency.route, idempotency.key),
            )

        await self._db.write(work)

    async def _one(self, where: str, *parameters: str) -> Run | None:
        def work(connection: sqlite3.Connection) -> Run | None:
            row = connection.execute(f"SELECT * FROM runs WHERE {where}", parameters).fetchone()
            return None if row is None else rows.run(row)

        return await self._db.read(work)

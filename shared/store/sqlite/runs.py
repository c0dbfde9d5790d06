"""Runs in SQLite: the lease, the steps, the events, the idempotency keys.

Every statement of a run's writer names the run, its fencing number and its owner, and wants the lease to
be alive: a host that was overtaken, or slept through its lease, changes nothing.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any, Final

from shared import jsons
from shared.errors import Conflict, ConversationBusy, LeaseLost, NoConversation
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
    RunState,
    Spending,
)
from shared.store import rows
from shared.store.cut_off import ACTED, AHEAD, cut_off
from shared.store.sqlite import conversations, keys, usage
from shared.store.sqlite.engine import Database
from shared.store.sqlite.lease_clock import lease_now

HELD: Final = "id = ? AND fence = ? AND lease_owner = ? AND state = 'running' AND lease_until > ?"


class SqliteRuns:
    """Implements the Runs contract."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def begin(self, new: NewRun) -> Lease:
        """Take the conversation's lease and store the first message, or leave no trace."""
        return await self._db.write(lambda connection: _begin(connection, new))

    async def renew(self, lease: Lease, lease_ms: int) -> None:
        """Prolong the lease; raises LeaseLost."""
        await self._db.write(
            lambda connection: _hold(connection, lease, "lease_until = ?", lease_now() + lease_ms)
        )

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
            _hold(
                connection,
                lease,
                f"""effect_ahead = (effect_ahead & {ACTED}) | ?,
                reserved_tokens = 0, reserved_microdollars = 0""",
                AHEAD | ACTED if effect_ahead else 0,
            )
            store_messages(connection, lease.conversation_id, lease.run_id, messages, now)
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
                if _is_held(connection, lease):
                    _record(connection, lease.run_id, events, now)
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
            _hold(
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
            store_messages(connection, lease.conversation_id, lease.run_id, messages, now)
            _record(connection, lease.run_id, events, now)
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
                _cut_off(connection, row, now)
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


def _begin(connection: sqlite3.Connection, new: NewRun) -> Lease:
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
        conversations.insert(connection, conversation_id, new.now, new.parent_id, new.temporary)
    _end_stale(connection, conversation_id, new.now)
    fence = connection.execute(
        "UPDATE conversations SET fence = fence + 1 WHERE id = ? RETURNING fence", (conversation_id,)
    ).fetchone()
    if fence is None:
        raise NoConversation(conversation_id)
    try:
        connection.execute(
            """INSERT INTO runs (id, conversation_id, state, fence, lease_owner, lease_until, message_id,
                created_at, model) VALUES (?, ?, 'running', ?, ?, ?, ?, ?, ?)""",
            (
                new.run_id,
                conversation_id,
                fence[0],
                new.owner,
                lease_now() + new.lease_ms,
                message_id,
                new.now,
                new.model,
            ),
        )
    except sqlite3.IntegrityError as error:
        raise ConversationBusy(conversation_id) from error
    store_messages(connection, conversation_id, new.run_id, messages, new.now)
    if new.idempotency is not None:
        keys.keep(connection, new.idempotency, new.run_id, conversation_id, new.now)
    return Lease(new.run_id, conversation_id, new.owner, fence[0], message_id)


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


def _hold(connection: sqlite3.Connection, lease: Lease, assignments: str, *values: Any) -> None:
    changed = connection.execute(
        f"UPDATE runs SET {assignments} WHERE {HELD}",
        (*values, lease.run_id, lease.fence, lease.owner, lease_now()),
    ).rowcount
    if changed != 1:
        raise LeaseLost(lease.run_id)


def store_messages(
    connection: sqlite3.Connection,
    conversation_id: str,
    run_id: str | None,
    messages: Sequence[NewMessage],
    now: int,
) -> None:
    """Append messages to a conversation inside a transaction; ``run_id`` None: no run said them."""
    if not messages:
        return
    visible = sum(message.text is not None for message in messages)
    row = connection.execute(
        """UPDATE conversations SET next_seq = next_seq + ?, message_count = message_count + ?,
        last_activity = max(last_activity, ?) WHERE id = ? RETURNING next_seq""",
        (len(messages), visible, now, conversation_id),
    ).fetchone()
    first = row[0] - len(messages)
    connection.executemany(
        """INSERT INTO messages (conversation_id, seq, id, run_id, role, sender, sender_name, text, blocks,
            created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)""",
        [
            (
                conversation_id,
                first + offset,
                message.id,
                run_id,
                message.role,
                message.sender,
                message.sender_name,
                message.text,
                jsons.dumps(message.blocks),
                now,
            )
            for offset, message in enumerate(messages)
        ],
    )


def _is_held(connection: sqlite3.Connection, lease: Lease) -> bool:
    """Look without writing: a row that is only looked at costs the volume nothing."""
    statement = f"SELECT 1 FROM runs WHERE {HELD}"
    values = (lease.run_id, lease.fence, lease.owner, lease_now())
    return connection.execute(statement, values).fetchone() is not None


def _record(connection: sqlite3.Connection, run_id: str, events: Iterable[Event], now: int) -> None:
    connection.executemany(
        "INSERT OR IGNORE INTO run_events (run_id, seq, name, data, created_at) VALUES (?, ?, ?, ?, ?)",
        [(run_id, event.seq, event.name, jsons.dumps(event.data), now) for event in events],
    )


def _end_stale(connection: sqlite3.Connection, conversation_id: str, now: int) -> None:
    stale = connection.execute(
        "SELECT * FROM runs WHERE conversation_id = ? AND state = 'running' AND lease_until <= ?",
        (conversation_id, lease_now()),
    ).fetchall()
    for row in stale:
        _cut_off(connection, row, now)


def _cut_off(connection: sqlite3.Connection, row: sqlite3.Row, now: int) -> None:
    """End a run whose owner is gone, and tell whoever follows its events."""
    ending = cut_off(row)
    connection.execute(
        "UPDATE runs SET state = 'error', finished_at = ?, error = ?, code = ?, answer = ? WHERE id = ?",
        (now, ending.error, ending.code, jsons.dumps(ending.answer), row["id"]),
    )
    unsettled = Spending(microdollars=row["reserved_microdollars"], unsettled_tokens=row["reserved_tokens"])
    usage.count(connection, row["conversation_id"], unsettled, now, runs=1)
    last = connection.execute("SELECT max(seq) FROM run_events WHERE run_id = ?", (row["id"],)).fetchone()[0]
    _record(connection, row["id"], ending.events(last), now)

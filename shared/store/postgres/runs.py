"""Runs in PostgreSQL: the lease, the steps, the events, the idempotency keys.

Every statement of a run's writer names the run, its fencing number and its owner, and wants the lease to be
alive by the database's clock: a host that was overtaken, or slept through its lease, changes nothing.
"""

from __future__ import annotations

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
from shared.store.postgres import conversations, keys, usage
from shared.store.postgres.database import UNIQUE_VIOLATION, Database
from shared.store.postgres.driver import Connection, is_server_error
from shared.store.postgres.lease_clock import NOW
from shared.store.rows import Row

HELD: Final = f"id = $1 AND fence = $2 AND lease_owner = $3 AND state = 'running' AND lease_until > {NOW}"

PAUSED: Final = """SELECT state, message_id, EXISTS (SELECT 1 FROM runs AS other WHERE other.state = 'paused'
        AND other.conversation_id = runs.conversation_id AND other.message_id = runs.message_id
    ) AS paused FROM runs WHERE conversation_id = $1 ORDER BY number DESC LIMIT 1"""


class PostgresRuns:
    """Implements the Runs contract."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def begin(self, new: NewRun) -> Lease:
        """Take the conversation's lease and store the first message, or leave no trace."""
        try:
            return await self._db.write(lambda connection: _begin(connection, new))
        except Exception as error:
            if is_server_error(error, UNIQUE_VIOLATION):
                raise ConversationBusy(new.conversation_id) from error
            raise

    async def renew(self, lease: Lease, lease_ms: int) -> None:
        """Prolong the lease; raises LeaseLost."""
        await self._db.write(
            lambda connection: hold(connection, lease, f"lease_until = {NOW} + $4::bigint", lease_ms)
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

        async def work(connection: Connection) -> None:
            await hold(
                connection,
                lease,
                f"""effect_ahead = (effect_ahead & {ACTED}) | $4,
                reserved_tokens = 0, reserved_microdollars = 0""",
                AHEAD | ACTED if effect_ahead else 0,
            )
            await store_messages(connection, lease.conversation_id, lease.run_id, messages, now)
            if spent is not None:
                await usage.count(connection, lease.conversation_id, spent, now)

        await self._db.write_patiently(work)

    async def record(self, told: Sequence[tuple[Lease, Sequence[Event]]], now: int) -> set[str]:
        """Store events of several runs (again is harmless); return the ids of those whose lease is lost."""
        if not told:
            return set()

        async def work(connection: Connection) -> set[str]:
            held = await _those_held(connection, [lease for lease, _ in told])
            for lease, events in told:
                if lease.run_id in held:
                    await _record(connection, lease.run_id, events, now)
            return {lease.run_id for lease, _ in told} - held

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

        async def work(connection: Connection) -> None:
            await hold(
                connection,
                lease,
                "state = $4, finished_at = $5, model = $6, usage = $7, error = $8, code = $9, answer = $10",
                end.state,
                now,
                end.model,
                rows.usage_text(end.usage),
                end.error,
                end.code,
                jsons.dumps(end.answer),
            )
            await store_messages(connection, lease.conversation_id, lease.run_id, messages, now)
            await _record(connection, lease.run_id, events, now)
            await usage.count(connection, lease.conversation_id, end.spending, now, runs=1)

        await self._db.write_patiently(work)

    async def get(self, conversation_id: str, run_id: str) -> Run | None:
        """Return a run of the conversation or None."""
        return await self._one("conversation_id = $1 AND id = $2", conversation_id, run_id)

    async def active(self, conversation_id: str) -> Run | None:
        """Return the conversation's running run or None."""
        return await self._one("conversation_id = $1 AND state = 'running'", conversation_id)

    async def page(self, conversation_id: str, *, limit: int, cursor: str | None) -> Page[Run]:
        """Return the conversation's runs, newest first."""
        before = rows.decode_cursor(cursor, int) or [2**62]

        async def work(connection: Connection) -> Page[Run]:
            found = await connection.fetch(
                "SELECT * FROM runs WHERE conversation_id = $1 AND number < $2 ORDER BY number DESC LIMIT $3",
                conversation_id,
                *before,
                limit + 1,
            )
            return rows.page(found, limit, rows.run, lambda row: (row["number"],))

        return await self._db.read(work)

    async def events(self, run_id: str, *, after: int, limit: int = 1000) -> list[Event]:
        """Return stored events with a larger ``seq``, in order."""

        async def work(connection: Connection) -> list[Event]:
            found = await connection.fetch(
                "SELECT seq, name, data FROM run_events WHERE run_id = $1 AND seq > $2 ORDER BY seq LIMIT $3",
                run_id,
                after,
                limit,
            )
            return [rows.event(row) for row in found]

        return await self._db.read_patiently(work)

    async def recover(self, now: int, *, all_but: str | None = None) -> list[str]:
        """End running runs whose lease ran out, or that anyone but ``all_but`` holds."""

        async def work(connection: Connection) -> list[str]:
            # A row that somebody holds right now is being renewed, ended or recovered already.
            stale = await connection.fetch(
                f"""SELECT * FROM runs WHERE state = 'running'
                AND (lease_until <= {NOW} OR lease_owner <> $1) ORDER BY number FOR UPDATE SKIP LOCKED""",
                all_but,
            )
            for row in stale:
                await _cut_off(connection, row, now)
            return [row["id"] for row in stale]

        return await self._db.write(work)

    async def keyed(self, idempotency: Idempotency, now: int) -> KeyedAnswer | None:
        """Return what a key of the last 24 h stands for, or None."""
        return await self._db.read(lambda connection: keys.keyed(connection, idempotency, now))

    async def keep_answer(
        self, idempotency: Idempotency, subject: str, status: int, body: dict[str, Any], now: int
    ) -> None:
        """Store the answer for a key (routes that are not runs)."""

        async def work(connection: Connection) -> None:
            await keys.keep(connection, idempotency, subject, body.get("conversation_id"), now)
            await connection.execute(
                "UPDATE idempotency_keys SET status = $1, body = $2 WHERE route = $3 AND key = $4",
                status,
                jsons.dumps(body),
                idempotency.route,
                idempotency.key,
            )

        await self._db.write(work)

    async def ask_cancel(self, conversation_id: str) -> str | None:
        """Note that the conversation's running run is to stop; returns its id, None if there is none."""

        async def work(connection: Connection) -> str | None:
            row = await connection.fetchrow(
                """UPDATE runs SET cancel_asked = 1 WHERE conversation_id = $1 AND state = 'running'
                RETURNING id""",
                conversation_id,
            )
            return None if row is None else str(row["id"])

        return await self._db.write(work)

    async def cancels_asked(self, owner: str) -> list[str]:
        """Return the ids of the owner's running runs that somebody wants to stop."""

        async def work(connection: Connection) -> list[str]:
            found = await connection.fetch(
                "SELECT id FROM runs WHERE lease_owner = $1 AND state = 'running' AND cancel_asked = 1", owner
            )
            return [row["id"] for row in found]

        return await self._db.read(work)

    async def _one(self, where: str, *parameters: str) -> Run | None:
        async def work(connection: Connection) -> Run | None:
            row = await connection.fetchrow(f"SELECT * FROM runs WHERE {where}", *parameters)
            return None if row is None else rows.run(row)

        return await self._db.read(work)


async def hold(connection: Connection, lease: Lease, assignments: str, *values: Any) -> None:
    """Write into the run's row, which stays locked until the end; raises LeaseLost."""
    row = await connection.fetchrow(
        f"UPDATE runs SET {assignments} WHERE {HELD} RETURNING id",
        lease.run_id,
        lease.fence,
        lease.owner,
        *values,
    )
    if row is None:
        raise LeaseLost(lease.run_id)


async def _those_held(connection: Connection, leases: Sequence[Lease]) -> set[str]:
    """Return which of the leases are alive; nobody overtakes those until the transaction ends."""
    found = await connection.fetch(
        f"""SELECT id FROM runs WHERE (id, fence, lease_owner) IN
            (SELECT * FROM unnest($1::text[], $2::bigint[], $3::text[]))
        AND state = 'running' AND lease_until > {NOW} ORDER BY id FOR SHARE""",
        [lease.run_id for lease in leases],
        [lease.fence for lease in leases],
        [lease.owner for lease in leases],
    )
    return {row["id"] for row in found}


async def _begin(connection: Connection, new: NewRun) -> Lease:
    conversation_id = new.conversation_id
    messages: tuple[NewMessage, ...] = ()
    again: Row | None = None
    if new.idempotency is not None:
        await keys.hold(connection, new.idempotency)
        again = await keys.retry_of(connection, new.idempotency, new.now)
    if again is not None:
        conversation_id = again["conversation_id"]
    elif new.create and new.message is not None:
        await conversations.insert(connection, conversation_id, new.now, new.parent_id, new.temporary)
    fence = await _take(connection, conversation_id, new.now)
    if again is not None:
        message_id = again["message_id"]
    elif new.message is None:
        message_id = await _paused_at(connection, conversation_id)
    else:
        message_id, messages = new.message.id, (new.message,)
    await _insert(connection, new, conversation_id, fence, message_id)
    await store_messages(connection, conversation_id, new.run_id, messages, new.now)
    if new.idempotency is not None:
        await keys.keep(connection, new.idempotency, new.run_id, conversation_id, new.now)
    return Lease(new.run_id, conversation_id, new.owner, fence, message_id)


async def _take(connection: Connection, conversation_id: str, now: int) -> int:
    """Lock the conversation, end a run of it whose owner is gone, and return a new fencing number."""
    fence = await connection.fetchval(
        "UPDATE conversations SET fence = fence + 1 WHERE id = $1 RETURNING fence", conversation_id
    )
    if fence is None:
        raise NoConversation(conversation_id)
    # A writer may hold the row just as its lease ends: then the conversation is busy for a moment more.
    stale = await connection.fetch(
        f"""SELECT * FROM runs WHERE conversation_id = $1 AND state = 'running' AND lease_until <= {NOW}
        FOR UPDATE SKIP LOCKED""",
        conversation_id,
    )
    for row in stale:
        await _cut_off(connection, row, now)
    running = await connection.fetchval(
        "SELECT 1 FROM runs WHERE conversation_id = $1 AND state = 'running'", conversation_id
    )
    if running is not None:
        raise ConversationBusy(conversation_id)
    return int(fence)


async def _insert(
    connection: Connection, new: NewRun, conversation_id: str, fence: int, message_id: str
) -> None:
    await connection.execute(
        f"""INSERT INTO runs (id, conversation_id, state, fence, lease_owner, lease_until, message_id,
            created_at, model) VALUES ($1, $2, 'running', $3, $4, {NOW} + $5::bigint, $6, $7, $8)""",
        new.run_id,
        conversation_id,
        fence,
        new.owner,
        new.lease_ms,
        message_id,
        new.now,
        new.model,
    )


async def _paused_at(connection: Connection, conversation_id: str) -> str:
    """Return the message that the conversation's paused run answers; raises Conflict.

    A run that went on after a pause and failed can be gone on with again: it answers the same message.
    """
    row = await connection.fetchrow(PAUSED, conversation_id)
    if row is None or row["state"] == RunState.SUCCESS or not row["paused"]:
        raise Conflict(f"Conversation {conversation_id} is not paused", code="not_paused")
    return str(row["message_id"])


async def store_messages(
    connection: Connection,
    conversation_id: str,
    run_id: str | None,
    messages: Sequence[NewMessage],
    now: int,
) -> None:
    """Append messages to a conversation inside a transaction; ``run_id`` None: no run said them."""
    if not messages:
        return
    visible = sum(message.text is not None for message in messages)
    following = await connection.fetchval(
        """UPDATE conversations SET next_seq = next_seq + $2, message_count = message_count + $3,
        last_activity = greatest(last_activity, $4) WHERE id = $1 RETURNING next_seq""",
        conversation_id,
        len(messages),
        visible,
        now,
    )
    first = following - len(messages)
    await connection.executemany(
        """INSERT INTO messages (conversation_id, seq, id, run_id, role, sender, sender_name, text, blocks,
            created_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)""",
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


async def _record(connection: Connection, run_id: str, events: Iterable[Event], now: int) -> None:
    await connection.executemany(
        """INSERT INTO run_events (run_id, seq, name, data, created_at) VALUES ($1, $2, $3, $4, $5)
        ON CONFLICT DO NOTHING""",
        [(run_id, event.seq, event.name, jsons.dumps(event.data), now) for event in events],
    )


async def _cut_off(connection: Connection, row: Row, now: int) -> None:
    """End a run whose owner is gone, and tell whoever follows its events."""
    ending = cut_off(row)
    await connection.execute(
        """UPDATE runs SET state = 'error', finished_at = $2, error = $3, code = $4, answer = $5
        WHERE id = $1""",
        row["id"],
        now,
        ending.error,
        ending.code,
        jsons.dumps(ending.answer),
    )
    last = await connection.fetchval("SELECT max(seq) FROM run_events WHERE run_id = $1", row["id"])
    await _record(connection, row["id"], ending.events(last), now)
    unsettled = Spending(microdollars=row["reserved_microdollars"], unsettled_tokens=row["reserved_tokens"])
    await usage.count(connection, row["conversation_id"], unsettled, now, runs=1)

"""Runs: the lease, the steps, the events, the idempotency keys."""

from collections.abc import Callable, Sequence
from functools import partial
from operator import itemgetter
from typing import Any, Final

from shared import jsons
from shared.errors import ConversationBusy, LeaseLost
from shared.store import rows
from shared.store.contract import Taken, Tx
from shared.store.rows import Noun, writes
from shared.store.sql import conversation_rows, lifetimes, run_rows, steps, usage
from shared.store.sql.conversations import REFUSED, mark_refused, store_messages
from shared.store.sql.lifetimes import hold, those_held
from shared.usage_values import Amount, Spending, Standing
from shared.values import (
    Event,
    Idempotency,
    KeyedAnswer,
    Lease,
    NewMessage,
    NewRun,
    Page,
    Run,
    RunEnd,
    RunFilter,
    RunState,
)

# A run knows what it continues; what continues it is looked up.
RUN: Final = """SELECT r.*, coalesce(root_id, id) AS root_run_id, previous_id AS previous_run_id,
    (SELECT id FROM runs AS next WHERE next.previous_id = r.id) AS next_run_id,
    coalesce(code, '') = 'retryable' AND again IS NOT NULL AS waits FROM runs AS r"""

FILTERS: Final = {
    "conversation_id": "conversation_id = {0}",
    "task_id": "id IN (SELECT run_id FROM task_runs WHERE task_id = {0})",
    "root_run_id": "(id = {0} OR (root_id = {0} AND previous_id IS NOT NULL))",
    "state": "state = {0}",
    "code": "code = {0}",
    "since": "created_at >= {0}",
    "until": "created_at <= {0}",
}
"""Conditions of a list by the other fields of ``RunFilter``."""

to_run: Final = rows.reader(
    Run, state=RunState, usage=rows.usage, answer=rows.optional(jsons.loads), waits=bool
)
to_event: Final = rows.reader(Event, data=jsons.loads)


class Runs(Noun):
    """Runs, their lease, their events, and idempotency keys."""

    async def begin(self, new: NewRun) -> Lease:
        """Take the conversation's lease and store the first message, or leave no trace.

        Raises NotFound (no such conversation), ConversationBusy, KeyTaken (the key's run or answer),
        Conflict ``idempotency_mismatch``. A key whose run ended as ``retryable`` starts a new run on the
        message that is already stored. Without a message: Conflict ``not_paused`` if the last one is
        answered, or can't be. For a task's slot: LeaseLost when its claim was
        taken over. A claim whose owner died is judged by its run: one that never began, or may safely be
        retried, is run again; one that ended has its outcome taken over; an interrupted one is an error.
        """
        try:
            return await self._engine.write(partial(run_rows.begin, new=new))
        except Taken:
            raise ConversationBusy(new.conversation_id) from None

    async def renew(self, leases: Sequence[Lease], lease_ms: int) -> set[str]:
        """Prolong leases in one transaction; return the ids of the runs whose lease is lost."""

        async def work(tx: Tx) -> set[str]:
            lost = set()
            for lease in leases:
                try:
                    await hold(tx, lease, "lease_until = lease_now() + $4::bigint", lease_ms)
                except LeaseLost:
                    lost.add(lease.run_id)
            return lost

        return await self._engine.write(work) if leases else set()

    async def append(
        self,
        lease: Lease,
        messages: Sequence[NewMessage],
        now: int,
        *,
        effect_ahead: bool = False,
        spent: Spending | None = None,
        ends_step: bool = False,
    ) -> None:
        """Store finished steps and what they spent, and give back what was reserved; raises LeaseLost.

        ``ends_step``: these are the results of the step that people were asked about.

        ``effect_ahead``: the next thing that happens may have an outward effect, so this is durable when it
        returns, and a run that is cut off before its next ``append`` ends as ``interrupted``, not as
        ``retryable``.
        """

        async def work(tx: Tx) -> None:
            changes = f"""effect_ahead = (effect_ahead & {run_rows.ACTED}) | $4,
                reserved_tokens = 0, reserved_microdollars = 0"""
            await hold(tx, lease, changes, run_rows.AHEAD | run_rows.ACTED if effect_ahead else 0)
            await store_messages(tx, lease.conversation_id, lease.run_id, messages, now)
            if ends_step:
                await steps.answered(tx, lease, now)
            if spent is not None:
                await usage.count(tx, lease.conversation_id, spent, now)

        await self._engine.write(work, patient=True, durably=effect_ahead)

    @writes(patient=True)
    async def reserve(self, tx: Tx, lease: Lease, decide: Callable[[Standing], Amount], now: int) -> None:
        """Reserve for the run's next model call, in the place of what it had reserved; raises LeaseLost.

        ``decide`` says how much, by what is spent and reserved so far; what it raises passes, and nothing
        is reserved. No two reservations are decided on the same figures.
        """
        await tx.lock("reserve", "")
        amount = decide(await usage.standing(tx, lease, now))
        reserved = "reserved_tokens = $4, reserved_microdollars = $5"
        await hold(tx, lease, reserved, amount.tokens, amount.microdollars)

    async def record(self, told: Sequence[tuple[Lease, Sequence[Event]]], now: int) -> set[str]:
        """Store events of several runs; return the ids of those whose lease is lost, of which nothing is."""
        if not told:
            return set()

        async def work(tx: Tx) -> set[str]:
            held = await those_held(tx, [lease for lease, _ in told])
            for lease, events in told:
                if lease.run_id in held:
                    await run_rows.record_events(tx, lease.run_id, events, now)
            return {lease.run_id for lease, _ in told} - held

        return await self._engine.write(work)

    @writes(patient=True, durably=True)
    async def finish(
        self,
        tx: Tx,
        lease: Lease,
        end: RunEnd,
        messages: Sequence[NewMessage],
        events: Sequence[Event],
        now: int,
        *,
        told: Sequence[str] = (),
    ) -> None:
        """End the run with its last messages and events, durably, and give the lease back; raises LeaseLost.

        ``told``: outbound messages that its answer brings.
        """
        await hold(
            tx,
            lease,
            """state = $4, finished_at = $5, model = $6, usage = $7, error = $8, code = $9, answer = $10,
            spent_tokens = spent_tokens + $11, spent_microdollars = spent_microdollars + $12""",
            end.state,
            now,
            end.model,
            jsons.dumps(end.usage),
            end.error,
            end.code,
            jsons.dumps(end.answer),
            end.spent.tokens,
            end.spent.microdollars,
        )
        await store_messages(tx, lease.conversation_id, lease.run_id, messages, now)
        if end.requests:
            await steps.ask(tx, lease, end, now)
        if lease.chain.previous_run_id is not None and not end.waits:
            await run_rows.end_of_chain(tx, lease.run_id, end.answer, now)
        if end.code == REFUSED:
            await mark_refused(tx, lease.conversation_id)
        await run_rows.record_events(tx, lease.run_id, events, now)
        await usage.count(tx, lease.conversation_id, end.spending, now, runs=1)
        if told:
            await conversation_rows.mark_delivered(tx, told, now)

    async def get(self, conversation_id: str, run_id: str) -> Run | None:
        """Return a run of the conversation or None."""
        statement = f"{RUN} WHERE conversation_id = $1 AND id = $2"
        return await self._one(to_run, statement, conversation_id, run_id)

    async def active(self, conversation_id: str) -> Run | None:
        """Return the conversation's running run or None."""
        statement = f"{RUN} WHERE conversation_id = $1 AND state = 'running'"
        return await self._one(to_run, statement, conversation_id)

    async def find(self, run_id: str, principal_id: str | None) -> Run | None:
        """Return a run of a principal's (None: of anybody's) or None."""
        statement = f"{RUN} WHERE id = $1 AND coalesce($2, principal_id) = principal_id"
        return await self._one(to_run, statement, run_id, principal_id)

    async def progress(self, run: Run) -> tuple[int, str | None]:
        """Return how many steps a run and those before it in its chain have stored, and the last tool that
        they called.
        """
        statement = """SELECT blocks FROM messages WHERE conversation_id = $1 AND role = 'assistant'
            AND run_id IN (SELECT id FROM runs WHERE id = $2 OR (root_id = $2 AND previous_id IS NOT NULL))
            ORDER BY seq"""
        steps = await self._all(
            lambda row: jsons.loads(row["blocks"]), statement, run.conversation_id, run.root_run_id
        )
        called = [block["name"] for blocks in steps[-1:] for block in blocks if block["type"] == "tool_use"]
        return len(steps), called[-1] if called else None

    async def page(self, wanted: RunFilter, *, limit: int, cursor: str | None) -> Page[Run]:
        """Return runs, newest first."""
        where = rows.Where()
        where.after("number < {0}", cursor, int)
        few = wanted.conversation_id or wanted.task_id or wanted.root_run_id
        # Few are looked for by what they are of: SQLite has no counts to know that it is less.
        where.add("principal_id || '' = {0}" if few else "principal_id = {0}", wanted.principal_id)
        for name, condition in FILTERS.items():
            where.add(condition, getattr(wanted, name))
        statement = f"{RUN} WHERE {where} ORDER BY number DESC LIMIT $1"
        return await self._page(to_run, ("number",), statement, limit, *where.values, long=True)

    async def to_begin_again(self, limit: int) -> list[Run]:
        """Return runs that were cut off and are begun again by themselves; oldest first."""
        statement = f"""{RUN} WHERE code = 'retryable' AND again IS NOT NULL
            AND again <> {run_rows.ON_ITS_SLOT} ORDER BY number LIMIT $1"""
        return await self._all(to_run, statement, limit)

    async def leave(self, run_id: str) -> None:
        """Let a cut-off run not be begun again by itself."""
        await self._change("UPDATE runs SET again = NULL WHERE id = $1", run_id)

    async def events(self, run_id: str, *, after: int, limit: int = 1000) -> list[Event]:
        """Return stored events with a larger ``seq``, in order."""
        statement = (
            "SELECT seq, name, data FROM run_events WHERE run_id = $1 AND seq > $2 ORDER BY seq LIMIT $3"
        )
        return await self._all(to_event, statement, run_id, after, limit, patient=True)

    @writes()
    async def recover(self, tx: Tx, now: int, *, all_but: str | None = None) -> list[str]:
        """End running runs whose lease ran out, or (``all_but``) that anyone but this owner holds.

        They end as ``error``, code ``interrupted`` or ``retryable``, with the ``error`` event that a
        waiting reader needs. Returns the ids of the ended runs.
        """
        # A row that somebody holds right now is being renewed, ended or recovered already. Sorted by `+`:
        # in the order of the table all runs there ever were would be looked at.
        statement = """SELECT * FROM runs WHERE state = 'running' AND (lease_until <= lease_now()
            OR lease_owner <> $1) ORDER BY +number FOR UPDATE SKIP LOCKED"""
        stale = await tx.fetch(statement, all_but)
        for row in stale:
            await run_rows.cut_off_run(tx, row, now)
        return [row["id"] for row in stale]

    async def keyed(self, idempotency: Idempotency, now: int) -> KeyedAnswer | None:
        """Return what a key of the last 24 h stands for, or None."""
        return await self._engine.read(lambda tx: lifetimes.keyed(tx, idempotency, now))

    @writes()
    async def keep_answer(
        self, tx: Tx, idempotency: Idempotency, subject: str, status: int, body: dict[str, Any], now: int
    ) -> None:
        """Store the answer for a key (routes that are not runs)."""
        await lifetimes.keep_key(tx, idempotency, subject, body.get("conversation_id"), now)
        statement = "UPDATE idempotency_keys SET status = $1, body = $2 WHERE route = $3 AND key = $4"
        await tx.execute(statement, status, jsons.dumps(body), idempotency.route, idempotency.key)

    @writes()
    async def ask_cancel(self, tx: Tx, conversation_id: str, run_id: str | None = None) -> str | None:
        """Note that the conversation's running run is to stop (if it is this one), or that its cut-off one
        isn't to be begun again; returns its id, None if there is none.
        """
        statement = """UPDATE runs SET cancel_asked = 1, again = NULL WHERE conversation_id = $1
            AND coalesce($2, id) = id
            AND (state = 'running' OR (code = 'retryable' AND again IS NOT NULL)) RETURNING id"""
        row = await tx.fetchrow(statement, conversation_id, run_id)
        return None if row is None else str(row["id"])

    async def cancels_asked(self, owner: str) -> list[str]:
        """Return the ids of the owner's running runs that somebody wants to stop."""
        statement = "SELECT id FROM runs WHERE lease_owner = $1 AND state = 'running' AND cancel_asked = 1"
        return await self._all(itemgetter("id"), statement, owner)

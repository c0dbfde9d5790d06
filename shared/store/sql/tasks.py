"""Scheduled tasks."""

from collections.abc import Sequence
from dataclasses import replace
from operator import attrgetter
from typing import Final

import anyio
import anyio.lowlevel

from shared.errors import Duplicate, LeaseLost, NoConversation, NotFound
from shared.principals import Reach
from shared.store import rows
from shared.store.contract import Engine, Missing, Row, Taken, Tx
from shared.store.rows import Noun, writes
from shared.store.sql import audit, conversation_rows, conversations, task_claims, task_rows
from shared.store.sql.conversation_rows import Outbound
from shared.store.sql.conversations import OF_PRINCIPAL
from shared.store.sql.lifetimes import ALIVE, HELD_CLAIM, hold
from shared.store.sql.runs import Runs
from shared.store.sql.task_claims import Claimant, Pause
from shared.store.sql.task_rows import COMPLETE, RUNNING_TASK, Claimed, Outcome, TaskMetrics, check_tree, end
from shared.task_values import Task, TaskRun, TaskRunState, TaskStatus
from shared.values import Page

COUNTED: Final = 10_000
"""How many due tasks are counted at most."""

AGAIN_S: Final = 0.05

FOREIGN: Final = "Task not found or access denied."
"""The one answer for an absent and for a foreign task."""

OWNED: Final = f"""id IN ($1, $2) AND ($3::text IS NULL OR conversation_id = $3)
    AND ($4::text IS NULL OR {OF_PRINCIPAL.format("$4")})"""
MINE: Final = f"SELECT * FROM scheduled_tasks WHERE {OWNED}"
# Tasks whose own slot is claimed are left out: they become due when that claim ends.
WAITING: Final = f"waits IN ({task_rows.FREE}, {task_rows.WAITS_FOR_CONVERSATION})"
COUNT_DUE: Final = f"""SELECT count(*) FROM (SELECT 1 FROM scheduled_tasks
    WHERE status = 'active' AND {WAITING} AND next_run <= $1 LIMIT {COUNTED}) AS due"""
# Each half is one step down the index.
NEXT_DUE: Final = " UNION ALL ".join(
    f"""SELECT min(next_run) AS slot FROM scheduled_tasks
    WHERE status = 'active' AND next_run IS NOT NULL AND waits = {waits}"""
    for waits in (task_rows.FREE, task_rows.WAITS_FOR_CONVERSATION)
)

_EDITED: Final = """prompt schedule_type schedule_value timezone context_mode catch_up status next_run
    attempts served_slot updated_at deliver ends_at max_runs runs_begun output_schema"""
EDITED: Final = tuple(_EDITED.split())
"""What an edit may change, ``$6`` and on of ``REPLACE``."""
ADDED: Final = (*EDITED, "id", "conversation_id", "revision", "created_at", "tree_id", "depth")
INSERT: Final = rows.insertion("scheduled_tasks", ADDED)
# A changed schedule is a new plan: what is running now belongs to the old one. An edited task that waited for
# its conversation is looked at afresh.
REPLACE: Final = f"""UPDATE scheduled_tasks SET
        plan = plan + CASE WHEN (schedule_type, schedule_value, timezone) <> ($7, $8, $9) THEN 1 ELSE 0 END,
        caught_up = CASE WHEN next_run IS NOT DISTINCT FROM $13 THEN caught_up ELSE 0 END,
        waits = CASE waits WHEN {task_rows.WAITS_FOR_CONVERSATION} THEN {task_rows.FREE} ELSE waits END,
        {", ".join(f"{column} = ${number}" for number, column in enumerate(EDITED, start=6))},
        revision = revision + 1
    WHERE {OWNED} AND revision = $5"""


class Tasks(Noun):
    """Scheduled tasks, their slots and claims. Rules: the tasks contract."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self._runs = Runs(engine)

    @writes()
    async def add(
        self, tx: Tx, task: Task, *, quota: int, alone_for: str | None = None, by: str | None = None
    ) -> None:
        """Store a task; raises Duplicate, NotFound (its conversation), Conflict (quota, tree), Suspended.

        ``alone_for``: its conversation is made with it, temporary and this principal's, and goes with it. A
        conversation at its quota, and a principal at its own, loses its oldest completed task first, if it
        has one. ``by``: the conversation in whose run it is made; where that is a task's run, the new one
        joins that task's tree, which is bounded (``task_outcomes.LARGEST_TREE``, ``DEEPEST_TREE``).
        """
        if alone_for is not None:
            await conversations.insert(
                tx, task.conversation_id, task.created_at, None, temporary=True, principal_id=alone_for
            )
        await task_rows.keep_quota(tx, task.conversation_id, quota)
        await _insert(tx, task if by is None else await _in_tree(tx, task, by))
        if audit.by_operator():
            await audit.crossed(tx, await tx.fetchval(audit.WHOSE, task.id), task.id)

    async def get(self, task_id: str, reach: Reach) -> Task | None:
        """Return the task if it is within reach."""
        return await self._one(task_rows.to_task, MINE, *within(task_id, reach))

    async def page(
        self, reach: Reach, *, status: TaskStatus | None, limit: int, cursor: str | None
    ) -> Page[Task]:
        """Return tasks in the order they were made."""
        where = rows.Where()
        where.after("number > {0}", cursor, int)
        where.add("conversation_id = {0}", reach.conversation_id)
        where.add(OF_PRINCIPAL, reach.principal_id)
        # With the bare column SQLite would look through all tasks of that status for a conversation's few.
        where.add("status = {0}" if reach.conversation_id is None else "status || '' = {0}", status)
        statement = f"SELECT * FROM scheduled_tasks WHERE {where} ORDER BY number LIMIT $1"
        return await self._page(task_rows.to_task, ("number",), statement, limit, *where.values)

    async def replace(self, task: Task, reach: Reach, *, expected_revision: int) -> bool:
        """Write an edited task (revision + 1) unless it changed meanwhile (False) or is out of reach.

        Claims and outcomes change the revision too, so an edit never undoes what they wrote.
        """
        edited = attrgetter(*EDITED)(task)
        return await self._change(REPLACE, *within(task.id, reach), expected_revision, *edited) > 0

    @writes()
    async def remove(self, tx: Tx, task_id: str, reach: Reach, *, by: str | None = None) -> bool:
        """Delete the task and its run log, and have its run cancelled; False if it is out of reach.

        ``by``: the conversation in whose run it is done; a task's own run completes its task instead, so that
        it can still say what it has to say.
        """
        own = None if by is None else await tx.fetchrow(RUNNING_TASK, by)
        if own is not None and own["id"] in (task_id, reach.stored(task_id)):
            await tx.execute(COMPLETE, own["id"])
            return True
        statement = f"DELETE FROM scheduled_tasks WHERE {OWNED} RETURNING conversation_id"
        row = await tx.fetchrow(statement, *within(task_id, reach))
        if row is None:
            return False
        await task_rows.remove_own_conversation(tx, row["conversation_id"])
        return True

    async def claim_due(
        self, *, host: str, now: int, lease_ms: int, but: tuple[str, ...] = ()
    ) -> Claimed | None:
        """Claim the earliest due slot that can run now and move the schedule on, in one transaction.

        Passes over group tasks whose conversation has a running run, and slots that a live claim holds;
        takes over a slot whose claim's lease ran out. ``but``: principals whose slots wait. Returns the task
        as it was claimed, or None.
        """
        by = Claimant(host, now, lease_ms, but)
        while True:
            claimed = await self._engine.write(lambda tx: task_claims.claim_due(tx, by))
            if not isinstance(claimed, Pause):
                return claimed
            if claimed is Pause.DEAD_RUN and not await self._runs.recover(now):
                # Somebody else is at that run.
                await anyio.sleep(AGAIN_S)
            await anyio.lowlevel.checkpoint()

    async def claim_left(self, *, host: str, now: int, lease_ms: int) -> Claimed | None:
        """Claim a slot that was triggered in the background on a host that is gone, or return None."""
        by = Claimant(host, now, lease_ms)
        return await self._engine.write(lambda tx: task_claims.claim_left(tx, by))

    @writes()
    async def claim_manual(
        self, tx: Tx, task_id: str, reach: Reach, *, host: str, now: int, lease_ms: int
    ) -> Claimed:
        """Claim a slot that leaves the schedule alone; raises NotFound, Conflict ``task_running``."""
        by = Claimant(host, now, lease_ms)
        statement, values = f"{MINE} FOR NO KEY UPDATE", within(task_id, reach)

        row = NotFound.unless(await tx.fetchrow(statement, *values), FOREIGN)
        return await task_claims.claim_manual(tx, row, by)

    async def is_beginning(self, task_id: str, reach: Reach) -> bool:
        """Return whether a slot of the task is claimed whose run has not begun yet."""
        statement = f"""SELECT 1 FROM task_runs WHERE {ALIVE} AND run_id IS NULL
            AND task_id IN (SELECT id FROM scheduled_tasks WHERE {OWNED})"""
        return await self._value(statement, *within(task_id, reach)) is not None

    async def renew_claim(self, claim: TaskRun, lease_ms: int) -> None:
        """Prolong a claim; raises LeaseLost."""
        await self._engine.write(
            lambda tx: hold(tx, claim, "lease_until = lease_now() + $4::bigint", lease_ms), patient=True
        )

    @writes(patient=True)
    async def release(self, tx: Tx, claim: TaskRun) -> None:
        """Give an unstarted claim back, as if it had never been made (its slot is due again)."""
        row = await _locked(tx, claim)
        if row is not None:
            await task_claims.give_back(tx, row)

    @writes(patient=True, durably=True)
    async def finish(
        self,
        tx: Tx,
        claim: TaskRun,
        *,
        state: TaskRunState,
        result: str | None,
        error: str | None,
        now: int,
        waits: bool = False,
        output: str | None = None,
    ) -> Sequence[Outbound]:
        """Write the outcome durably into the claim's own row, with what people are told; raises LeaseLost.

        ``waits``: the run waits for a person; the outcome will be that of the run that goes on last.

        A ``once`` task whose schedule was not edited meanwhile completes, is retried, or fails; another one
        completes when no slot is left. Returns what the conversation of the task was told
        (``task_outcomes.told``).
        """
        row = await _locked(tx, claim)
        if row is None:
            raise LeaseLost(claim.id)
        if waits:
            await tx.execute(
                "UPDATE task_runs SET state = $2, error = $3 WHERE id = $1", claim.id, state, error
            )
            return ()
        told = await end(tx, row, Outcome(state, result, error, output=output), now)
        await conversation_rows.mark_delivered(tx, [message.id for message in told], now)
        return told

    async def runs(
        self, task_id: str, reach: Reach, *, limit: int, cursor: str | None
    ) -> Page[TaskRun] | None:
        """Return the run log, newest first; None if the task is out of reach."""
        (before,) = rows.decode_cursor(cursor, int) or [2**62]
        task = await self.get(task_id, reach)
        if task is None:
            return None
        statement = """SELECT * FROM task_runs WHERE task_id = $2 AND number < $3
            ORDER BY number DESC LIMIT $1"""
        return await self._page(task_rows.to_task_run, ("number",), statement, limit, task.id, before)

    async def recover(self, now: int, *, all_but: str) -> int:
        """Let go of the claims that anyone but this owner holds (at a host's start); returns how many."""
        return await self._engine.write(lambda tx: task_claims.let_go(tx, all_but, now))

    async def count_due(self, now: int) -> int:
        """Return how many active tasks are due (bounded by an index, at most 10,000 counted)."""
        return await self._engine.read(lambda tx: _count_due(tx, now))

    async def next_due(self) -> int | None:
        """Return the earliest next_run of all active tasks, or None."""
        return await self._engine.read(_next_due)

    async def metrics(self, now: int) -> TaskMetrics:
        """Return the figures for /metrics."""

        async def work(tx: Tx) -> TaskMetrics:
            running = await tx.fetchval("SELECT count(*) FROM task_runs WHERE state = 'running'")
            earliest = await _next_due(tx)
            late = 0 if earliest is None else max(now - earliest, 0)
            return TaskMetrics(await _count_due(tx, now), int(running), late / 1000)

        return await self._engine.read(work)


def within(task_id: str, reach: Reach) -> tuple[str | None, ...]:
    """Return the values of ``OWNED``: a task may be called by the name that its caller chose for it."""
    return task_id, reach.stored(task_id), reach.conversation_id, reach.principal_id


async def _in_tree(tx: Tx, task: Task, by: str) -> Task:
    """Return the task as a run that goes on in ``by`` may add it; raises Conflict ``task_tree``."""
    maker = await tx.fetchrow(RUNNING_TASK, by)
    if maker is None:
        return task
    root = maker["tree_id"] or maker["id"]
    await tx.lock("tree", root)
    check_tree(maker["depth"], await tx.fetchval("SELECT task_tree_size($1)", root))
    return replace(task, tree_id=root, depth=maker["depth"] + 1)


async def _insert(tx: Tx, task: Task) -> None:
    try:
        await tx.execute(INSERT, *attrgetter(*ADDED)(task))
    except Taken:
        raise Duplicate(f"id exists already: {task.id}") from None
    except Missing:
        raise NoConversation(task.conversation_id) from None


async def _locked(tx: Tx, claim: TaskRun) -> Row | None:
    """Return the claim's row if it is still held, locked after its task's."""
    await tx.execute("SELECT 1 FROM scheduled_tasks WHERE id = $1 FOR NO KEY UPDATE", claim.task_id)
    return await tx.fetchrow(
        f"SELECT * FROM task_runs WHERE {HELD_CLAIM} FOR UPDATE", claim.id, claim.fence, claim.owner
    )


async def _count_due(tx: Tx, now: int) -> int:
    return int(await tx.fetchval(COUNT_DUE, now))


async def _next_due(tx: Tx) -> int | None:
    found = [row["slot"] for row in await tx.fetch(NEXT_DUE)]
    return min((slot for slot in found if slot is not None), default=None)

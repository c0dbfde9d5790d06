"""Scheduled tasks in SQLite."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any, Final

import anyio.lowlevel

from shared.errors import Conflict, Duplicate, LeaseLost, NoConversation
from shared.models import Outbound, Page, Task, TaskRun, TaskRunState, TaskStatus
from shared.store import rows, task_rows
from shared.store.sql import conversations
from shared.store.sqlite import task_claims
from shared.store.sqlite.engine import Database
from shared.store.sqlite.lease_clock import lease_now
from shared.store.sqlite.runs import SqliteRuns
from shared.store.sqlite.task_claims import Claimant, Pause
from shared.store.sqlite.task_outcomes import end
from shared.store.sqlite.transactions import SqliteTx, drive
from shared.store.task_contract import TaskMetrics
from shared.store.task_endings import (
    COMPLETE,
    RUNNING_TASK,
    TREE_SIZE,
    Claimed,
    Outcome,
    check_tree,
)

COUNTED: Final = 10_000
"""How many due tasks are counted at most."""

OWNED: Final = "(:owner IS NULL OR conversation_id = :owner)"
HELD: Final = "id = ? AND fence = ? AND owner = ? AND state = 'running' AND lease_until > ?"
# Tasks whose own slot is claimed are left out: they become due when that claim ends.
DUE: Final = "SELECT next_run FROM scheduled_tasks WHERE status = 'active' AND waits = {} AND next_run <= ?"
EARLIEST: Final = """SELECT min(next_run) FROM scheduled_tasks
    WHERE status = 'active' AND next_run IS NOT NULL AND waits = {}"""
WAITING: Final = (task_rows.FREE, task_rows.WAITS_FOR_CONVERSATION)

INSERT: Final = """INSERT INTO scheduled_tasks (id, conversation_id, prompt, schedule_type, schedule_value,
        timezone, context_mode, catch_up, status, next_run, attempts, revision, created_at, updated_at,
        deliver, ends_at, max_runs, runs_begun, tree_id, depth)
    VALUES (:id, :conversation_id, :prompt, :schedule_type, :schedule_value, :timezone, :context_mode,
        :catch_up, :status, :next_run, :attempts, :revision, :created_at, :updated_at,
        :deliver, :ends_at, :max_runs, :runs_begun, :tree_id, :depth)"""
# A changed schedule is a new plan: what is running now belongs to the old one. An edited task that waited for
# its conversation is looked at afresh.
REPLACE: Final = f"""UPDATE scheduled_tasks SET
        plan = plan + ((schedule_type, schedule_value, timezone)
            <> (:schedule_type, :schedule_value, :timezone)),
        prompt = :prompt, schedule_type = :schedule_type, schedule_value = :schedule_value,
        timezone = :timezone, context_mode = :context_mode, catch_up = :catch_up, status = :status,
        caught_up = CASE WHEN next_run IS :next_run THEN caught_up ELSE 0 END,
        next_run = :next_run, attempts = :attempts, served_slot = :served_slot, updated_at = :updated_at,
        deliver = :deliver, ends_at = :ends_at, max_runs = :max_runs, runs_begun = :runs_begun,
        waits = CASE waits WHEN {task_rows.WAITS_FOR_CONVERSATION} THEN {task_rows.FREE} ELSE waits END,
        revision = revision + 1
    WHERE id = :id AND revision = :expected AND {OWNED}"""


class SqliteTasks:
    """Implements the Tasks contract."""

    def __init__(self, database: Database) -> None:
        self._db = database
        self._runs = SqliteRuns(database)

    async def add(
        self, task: Task, *, quota: int, own_conversation: bool = False, by: str | None = None
    ) -> None:
        """Store a task; raises Duplicate, NotFound (its conversation), Conflict (quota, tree)."""

        def work(connection: sqlite3.Connection) -> None:
            if own_conversation:
                drive(
                    conversations.insert(
                        SqliteTx(connection), task.conversation_id, task.created_at, None, temporary=True
                    )
                )
            _keep_quota(connection, task.conversation_id, quota)
            _insert(connection, task if by is None else _in_tree(connection, task, by))

        await self._db.write(work)

    async def get(self, task_id: str, *, owner: str | None) -> Task | None:
        """Return the task if it is the owner's."""

        def work(connection: sqlite3.Connection) -> Task | None:
            row = _owned(connection, task_id, owner)
            return None if row is None else task_rows.task(row)

        return await self._db.read(work)

    async def page(
        self, *, owner: str | None, status: TaskStatus | None, limit: int, cursor: str | None
    ) -> Page[Task]:
        """Return tasks in the order they were made."""
        where: dict[str, Any] = {"number > ?": (rows.decode_cursor(cursor, int) or [0])[0]}
        if owner is not None:
            where["conversation_id = ?"] = owner
        if status is not None:
            # With an owner its few tasks are the way in, not everybody's of that status.
            where["status = ?" if owner is None else "+status = ?"] = status
        statement = f"SELECT * FROM scheduled_tasks WHERE {' AND '.join(where)} ORDER BY number LIMIT ?"

        def work(connection: sqlite3.Connection) -> Page[Task]:
            found = connection.execute(statement, (*where.values(), limit + 1)).fetchall()
            return rows.page(found, limit, task_rows.task, lambda row: (row["number"],))

        return await self._db.read(work)

    async def replace(self, task: Task, *, owner: str | None, expected_revision: int) -> bool:
        """Write an edited task unless it changed meanwhile (False) or is not the owner's."""
        values = asdict(task) | {"owner": owner, "expected": expected_revision}
        return await self._db.write(lambda connection: connection.execute(REPLACE, values).rowcount == 1)

    async def remove(self, task_id: str, *, owner: str | None, by: str | None = None) -> bool:
        """Delete the task and its run log; a run's own task is completed. False if it is not the owner's."""

        def work(connection: sqlite3.Connection) -> bool:
            row = _owned(connection, task_id, owner)
            if row is None:
                return False
            own = _running_task(connection, by)
            if own is not None and own["id"] == task_id:
                connection.execute(COMPLETE, {"1": task_id})
                return True
            connection.execute("DELETE FROM scheduled_tasks WHERE number = ?", (row["number"],))
            _remove_own_conversation(connection, row["conversation_id"])
            return True

        return await self._db.write(work)

    async def claim_due(self, *, host: str, now: int, lease_ms: int) -> Claimed | None:
        """Claim the earliest due slot that can run now and move the schedule on, in one transaction."""
        by = Claimant(host, now, lease_ms)
        while True:
            claimed = await self._db.write(lambda connection: task_claims.claim_due(connection, by))
            if not isinstance(claimed, Pause):
                return claimed
            if claimed is Pause.DEAD_RUN:
                await self._runs.recover(now)
            await anyio.lowlevel.checkpoint()

    async def claim_manual(
        self, task_id: str, *, owner: str | None, host: str, now: int, lease_ms: int
    ) -> Claimed:
        """Claim a slot of its own that leaves the schedule alone; raises NotFound."""
        by = Claimant(host, now, lease_ms)
        return await self._db.write(
            lambda connection: task_claims.claim_manual(connection, task_id, owner, by)
        )

    async def renew_claim(self, claim: TaskRun, lease_ms: int) -> None:
        """Prolong a claim; raises LeaseLost."""
        until = lease_now() + lease_ms
        await self._db.write(lambda connection: _hold(connection, claim, "lease_until = ?", until))

    async def attach(self, claim: TaskRun, run_id: str, conversation_id: str) -> None:
        """Note which run serves the claim, before that run begins; raises LeaseLost."""
        await self._db.write(
            lambda connection: _hold(
                connection, claim, "run_id = ?, conversation_id = ?", run_id, conversation_id
            )
        )

    async def release(self, claim: TaskRun) -> None:
        """Give an unstarted claim back, as if it had never been made (its slot is due again)."""

        def work(connection: sqlite3.Connection) -> None:
            row = connection.execute(f"SELECT * FROM task_runs WHERE {HELD}", _holder(claim)).fetchone()
            if row is not None:
                task_claims.give_back(connection, row)

        await self._db.write(work)

    async def finish(
        self,
        claim: TaskRun,
        *,
        state: TaskRunState,
        result: str | None,
        error: str | None,
        now: int,
    ) -> Sequence[Outbound]:
        """Write the outcome into the claim's own row, with what people are told; raises LeaseLost."""

        def work(connection: sqlite3.Connection) -> Sequence[Outbound]:
            row = connection.execute(f"SELECT * FROM task_runs WHERE {HELD}", _holder(claim)).fetchone()
            if row is None:
                raise LeaseLost(claim.id)
            return end(connection, row, Outcome(state, result, error), now)

        return await self._db.write(work)

    async def runs(
        self, task_id: str, *, owner: str | None, limit: int, cursor: str | None
    ) -> Page[TaskRun] | None:
        """Return the run log, newest first; None if the task is not the owner's."""
        before = rows.decode_cursor(cursor, int) or [2**62]

        def work(connection: sqlite3.Connection) -> Page[TaskRun] | None:
            if _owned(connection, task_id, owner) is None:
                return None
            found = connection.execute(
                "SELECT * FROM task_runs WHERE task_id = ? AND number < ? ORDER BY number DESC LIMIT ?",
                (task_id, *before, limit + 1),
            ).fetchall()
            return rows.page(found, limit, task_rows.task_run, lambda row: (row["number"],))

        return await self._db.read(work)

    async def recover(self, now: int, *, all_but: str) -> int:
        """Let go of the claims that anyone but this owner holds; returns how many."""
        return await self._db.write(lambda connection: task_claims.let_go(connection, all_but, now))

    async def count_due(self, now: int) -> int:
        """Return how many active tasks are due, at most COUNTED."""
        return await self._db.read(lambda connection: _count_due(connection, now))

    async def next_due(self) -> int | None:
        """Return the earliest next_run of all active tasks whose own slot isn't claimed already, or None."""
        return await self._db.read(_next_due)

    async def metrics(self, now: int) -> TaskMetrics:
        """Return the figures for /metrics."""

        def work(connection: sqlite3.Connection) -> TaskMetrics:
            running = connection.execute("SELECT count(*) FROM task_runs WHERE state = 'running'").fetchone()
            earliest = _next_due(connection)
            late = 0 if earliest is None else max(now - earliest, 0)
            return TaskMetrics(_count_due(connection, now), running[0], late / 1000)

        return await self._db.read(work)


def _owned(connection: sqlite3.Connection, task_id: str, owner: str | None) -> sqlite3.Row | None:
    row: sqlite3.Row | None = connection.execute(
        f"SELECT * FROM scheduled_tasks WHERE id = :id AND {OWNED}", {"id": task_id, "owner": owner}
    ).fetchone()
    return row


def _running_task(connection: sqlite3.Connection, conversation_id: str | None) -> sqlite3.Row | None:
    row: sqlite3.Row | None = connection.execute(RUNNING_TASK, {"1": conversation_id}).fetchone()
    return row


def _in_tree(connection: sqlite3.Connection, task: Task, by: str) -> Task:
    """Return the task as a run that goes on in ``by`` may add it; raises Conflict ``task_tree``."""
    maker = _running_task(connection, by)
    if maker is None:
        return task
    root = maker["tree_id"] or maker["id"]
    check_tree(maker["depth"], connection.execute(TREE_SIZE, {"1": root}).fetchone()[0])
    return replace(task, tree_id=root, depth=maker["depth"] + 1)


def _insert(connection: sqlite3.Connection, task: Task) -> None:
    try:
        connection.execute(INSERT, asdict(task))
    except sqlite3.IntegrityError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_CONSTRAINT_UNIQUE:
            raise Duplicate(f"id exists already: {task.id}") from error
        raise NoConversation(task.conversation_id) from error


def _keep_quota(connection: sqlite3.Connection, conversation_id: str, quota: int) -> None:
    """Make sure that one more task fits; a completed one makes room, so that reminders never add up."""
    count = connection.execute(
        "SELECT count(*) FROM (SELECT 1 FROM scheduled_tasks WHERE conversation_id = ? LIMIT ?)",
        (conversation_id, quota),
    ).fetchone()[0]
    if count < quota:
        return
    removed = connection.execute(
        """DELETE FROM scheduled_tasks WHERE number = (SELECT min(number) FROM scheduled_tasks
            WHERE conversation_id = ? AND +status = 'completed')""",
        (conversation_id,),
    ).rowcount
    if removed == 0:
        raise Conflict(
            f"Conversation {conversation_id} owns {count} tasks, which is the limit; cancel one first.",
            code="task_quota",
        )


def _remove_own_conversation(connection: sqlite3.Connection, conversation_id: str) -> None:
    """Remove a task's own hidden conversation with its task, unless something runs in its name."""
    connection.execute(
        """DELETE FROM conversations WHERE id = ?1 AND temporary = 1 AND owner_id = ?1
        AND NOT EXISTS (SELECT 1 FROM scheduled_tasks WHERE conversation_id = ?1)
        AND NOT EXISTS (SELECT 1 FROM runs WHERE state = 'running' AND conversation_id IN
            (SELECT id FROM conversations WHERE temporary = 1 AND owner_id = ?1))""",
        (conversation_id,),
    )


def _holder(claim: TaskRun) -> tuple[str, int, str, int]:
    return claim.id, claim.fence, claim.owner, lease_now()


def _hold(connection: sqlite3.Connection, claim: TaskRun, assignments: str, *values: Any) -> None:
    changed = connection.execute(
        f"UPDATE task_runs SET {assignments} WHERE {HELD}", (*values, *_holder(claim))
    ).rowcount
    if changed != 1:
        raise LeaseLost(claim.id)


def _count_due(connection: sqlite3.Connection, now: int) -> int:
    each = " UNION ALL ".join(DUE.format(waits) for waits in WAITING)
    row = connection.execute(
        f"SELECT count(*) FROM ({each} LIMIT {COUNTED})", (now,) * len(WAITING)
    ).fetchone()
    return int(row[0])


def _next_due(connection: sqlite3.Connection) -> int | None:
    found = [connection.execute(EARLIEST.format(waits)).fetchone()[0] for waits in WAITING]
    return min((slot for slot in found if slot is not None), default=None)

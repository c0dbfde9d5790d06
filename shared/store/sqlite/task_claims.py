"""Claiming slots: due ones, manual ones, and those of a host that died. Each function runs in a transaction.

The earliest free task is one step down an index, however many there are. A task that can't run now is marked
as waiting and leaves that index; the end of what it waits for brings it back. So a claim's cost depends
neither on the number of tasks nor on how many must wait.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Final
from uuid import uuid4

from shared import jsons
from shared.catch_up import decide
from shared.errors import InvalidInput, NotFound
from shared.ids import TASK_RUN, new_id
from shared.models import TaskRunState
from shared.schedules import parse
from shared.store.cut_off import ACTED
from shared.store.sqlite.lease_clock import lease_now
from shared.store.sqlite.task_outcomes import end
from shared.store.task_endings import TRIES, Claimed, Fate, Outcome, abandoned
from shared.store.task_rows import (
    FREE,
    MANUAL,
    WAITS_FOR_CONVERSATION,
    WAITS_FOR_MANUAL,
    WAITS_FOR_SLOT,
    check_idle,
    task,
    task_run,
)

STEPS_AT_ONCE: Final = 16
"""How many conversations or tasks one transaction may take out of the way before it lets others write."""

DEAD_AT_ONCE: Final = 64
"""How many dead owners' claims one transaction looks at."""


class Pause(Enum):
    """Why a transaction ended without an answer."""

    AGAIN = auto()
    """It did its share of work and there is more."""
    DEAD_RUN = auto()
    """A run's lease ran out; runs must be recovered before anyone can say which conversations are busy."""


@dataclass(frozen=True, slots=True)
class Claimant:
    """Who claims, when, and for how long."""

    host: str
    now: int
    lease_ms: int

    def lease_until(self) -> int:
        """Return the end of a lease that starts now, on the lease clock."""
        return lease_now() + self.lease_ms


def claim_due(connection: sqlite3.Connection, by: Claimant) -> Claimed | Pause | None:
    """Claim what can run now: a dead owner's slot first, then the earliest due one."""
    dead = connection.execute(
        "SELECT 1 FROM runs WHERE state = 'running' AND lease_until <= ? LIMIT 1", (lease_now(),)
    ).fetchone()
    if dead is not None:
        return Pause.DEAD_RUN
    taken = _take_over(connection, by)
    if taken is not None:
        return taken
    for _ in range(STEPS_AT_ONCE):
        row = connection.execute(
            """SELECT * FROM scheduled_tasks WHERE status = 'active' AND waits = 0 AND next_run <= ?
            ORDER BY next_run, number LIMIT 1""",
            (by.now,),
        ).fetchone()
        if row is None:
            return None
        claimed = _claim(connection, row, by)
        if claimed is not None:
            return claimed
    return Pause.AGAIN


def claim_manual(connection: sqlite3.Connection, task_id: str, owner: str | None, by: Claimant) -> Claimed:
    """Claim a slot of its own; raises NotFound, Conflict ``task_running``."""
    row = connection.execute(
        "SELECT * FROM scheduled_tasks WHERE id = ?1 AND (?2 IS NULL OR conversation_id = ?2)",
        (task_id, owner),
    ).fetchone()
    if row is None:
        raise NotFound("Task not found or access denied.")
    check_idle(row)
    claim = _insert(connection, row, f"{MANUAL}{uuid4()}", 1, by)
    if claim is None:
        raise RuntimeError("a random slot was taken")
    connection.execute(
        "UPDATE scheduled_tasks SET waits = ? WHERE number = ?", (WAITS_FOR_MANUAL, row["number"])
    )
    return task(row), task_run(claim)


def let_go(connection: sqlite3.Connection, all_but: str, now: int) -> int:
    """End the leases of all claims but this owner's, and end those claims that won't be run again."""
    found = connection.execute(
        "SELECT * FROM task_runs WHERE state = 'running' AND owner <> ?", (all_but,)
    ).fetchall()
    for claim in found:
        connection.execute("UPDATE task_runs SET lease_until = 0 WHERE id = ?", (claim["id"],))
        fate = _fate(connection, claim)
        if isinstance(fate, Outcome):
            end(connection, claim, fate, now)
    return len(found)


def give_back(connection: sqlite3.Connection, claim: sqlite3.Row) -> None:
    """Undo a claim whose run never began; its slot is due again unless the schedule was changed."""
    if claim["fence"] > 1:
        # Taken over from a dead owner: it goes back to being a dead owner's.
        connection.execute(
            "UPDATE task_runs SET lease_until = 0, attempt = attempt - 1 WHERE id = ?", (claim["id"],)
        )
        return
    connection.execute("DELETE FROM task_runs WHERE id = ?", (claim["id"],))
    manual = claim["slot"].startswith(MANUAL)
    connection.execute(
        "UPDATE scheduled_tasks SET waits = ?, revision = revision + ? WHERE id = ?",
        (FREE, 0 if manual else 1, claim["task_id"]),
    )
    if manual:
        return
    connection.execute(
        "UPDATE scheduled_tasks SET next_run = ?, runs_begun = runs_begun - 1 WHERE id = ? AND plan = ?",
        (int(claim["slot"]), claim["task_id"], claim["plan"]),
    )


def _claim(connection: sqlite3.Connection, row: sqlite3.Row, by: Claimant) -> Claimed | None:
    """Claim the due slot of a task, or take the task out of the way and return None."""
    if row["context_mode"] == "group" and _busy(connection, row["conversation_id"]):
        _hold_back(connection, row["conversation_id"], by.now)
        return None
    try:
        schedule = parse(row["schedule_type"], row["schedule_value"], row["timezone"])
    except InvalidInput:
        # Checked when it was stored: the zone or the rules are gone since. One task must not stop the others.
        _move_on(connection, row, next_run=None, status="failed")
        return None
    slot = row["next_run"]
    decision = decide(schedule, row["catch_up"], slot, by.now, row["caught_up"])
    claim = _insert(connection, row, str(slot), row["attempts"] + 1, by) if decision.run else None
    begun = row["runs_begun"] + (claim is not None)
    next_run = replace(task(row), runs_begun=begun).within_bounds(decision.next_slot)
    if claim is None:
        _move_on(connection, row, next_run=next_run, status="completed" if next_run is None else "active")
        return None
    moved = connection.execute(
        """UPDATE scheduled_tasks SET next_run = ?, caught_up = ?, waits = ?, runs_begun = ?,
        revision = revision + 1 WHERE number = ? RETURNING *""",
        (next_run, decision.caught_up, WAITS_FOR_SLOT, begun, row["number"]),
    ).fetchone()
    return task(moved), task_run(claim)


def _insert(
    connection: sqlite3.Connection, row: sqlite3.Row, slot: str, attempt: int, by: Claimant
) -> sqlite3.Row | None:
    """Add the slot's row, or return None when that slot was run before (the clock was set back)."""
    claim: sqlite3.Row | None = connection.execute(
        """INSERT INTO task_runs
            (id, task_id, slot, state, attempt, fence, owner, lease_until, plan, started_at)
        VALUES (?, ?, ?, 'running', ?, 1, ?, ?, ?, ?) ON CONFLICT (task_id, slot) DO NOTHING RETURNING *""",
        (
            new_id(TASK_RUN),
            row["id"],
            slot,
            attempt,
            by.host,
            by.lease_until(),
            row["plan"],
            by.now,
        ),
    ).fetchone()
    return claim


def _move_on(connection: sqlite3.Connection, row: sqlite3.Row, *, next_run: int | None, status: str) -> None:
    connection.execute(
        """UPDATE scheduled_tasks SET next_run = ?, status = ?, caught_up = 0, revision = revision + 1
        WHERE number = ?""",
        (next_run, status, row["number"]),
    )


def _busy(connection: sqlite3.Connection, conversation_id: str) -> bool:
    running = connection.execute(
        "SELECT 1 FROM runs WHERE conversation_id = ? AND state = 'running'", (conversation_id,)
    ).fetchone()
    return running is not None


def _hold_back(connection: sqlite3.Connection, conversation_id: str, now: int) -> None:
    # The way in is the conversation with its few tasks, not all that are due.
    connection.execute(
        """UPDATE scheduled_tasks INDEXED BY tasks_of_conversation SET waits = ?
        WHERE conversation_id = ? AND context_mode = 'group' AND status = 'active' AND waits = 0
        AND next_run <= ?""",
        (WAITS_FOR_CONVERSATION, conversation_id, now),
    )


def _take_over(connection: sqlite3.Connection, by: Claimant) -> Claimed | None:
    """End the claims of dead owners, and take over the first one that is to be run again."""
    dead = connection.execute(
        """SELECT * FROM task_runs WHERE state = 'running' AND lease_until <= ?
        ORDER BY lease_until, number LIMIT ?""",
        (lease_now(), DEAD_AT_ONCE),
    ).fetchall()
    for claim in dead:
        fate = _fate(connection, claim)
        if isinstance(fate, Outcome):
            end(connection, claim, fate, by.now)
        elif fate is Fate.RERUN:
            return _rerun(connection, claim, by)
    return None


def _fate(connection: sqlite3.Connection, claim: sqlite3.Row) -> Outcome | Fate:
    run = connection.execute(
        "SELECT state, code, error, answer, effect_ahead FROM runs WHERE id = ?", (claim["run_id"],)
    ).fetchone()
    if run is not None and run["code"] == "retryable" and run["effect_ahead"] & ACTED:
        # Run again from its beginning it would act again.
        return abandoned("an earlier step of it had an effect", final=True)
    if run is None or run["code"] == "retryable":
        return _fate_without_effect(connection, claim)
    if run["state"] == "running":
        return Fate.WAIT
    answer = {} if run["answer"] is None else jsons.loads(run["answer"])
    return Outcome(
        TaskRunState(run["state"]), answer.get("result"), run["error"], final=run["code"] == "interrupted"
    )


def _fate_without_effect(connection: sqlite3.Connection, claim: sqlite3.Row) -> Outcome | Fate:
    """Judge a claim whose run did nothing that can be seen from outside."""
    row = connection.execute("SELECT * FROM scheduled_tasks WHERE id = ?", (claim["task_id"],)).fetchone()
    if claim["slot"].startswith(MANUAL):
        return abandoned("a manual run is repeated by who asked for it")
    if claim["fence"] >= TRIES:
        return abandoned(f"{TRIES} hosts in a row stopped while they ran it", final=True)
    if row["plan"] != claim["plan"]:
        return abandoned("the schedule was changed meanwhile")
    if row["status"] != "active":
        return abandoned(f"the task is {row['status']}")
    if row["context_mode"] == "group" and _busy(connection, row["conversation_id"]):
        return Fate.WAIT
    return Fate.RERUN


def _rerun(connection: sqlite3.Connection, claim: sqlite3.Row, by: Claimant) -> Claimed:
    again = connection.execute(
        """UPDATE task_runs SET fence = fence + 1, attempt = attempt + 1, owner = ?, lease_until = ?,
        started_at = ?, run_id = NULL WHERE id = ? RETURNING *""",
        (by.host, by.lease_until(), by.now, claim["id"]),
    ).fetchone()
    row = connection.execute("SELECT * FROM scheduled_tasks WHERE id = ?", (claim["task_id"],)).fetchone()
    return task(row), task_run(again)

"""How a slot ends: its own row, and what that means for its task.

An outcome never writes over a status or a schedule that people changed while the slot ran: the status moves
only from ``active``, the schedule only while its ``plan`` (which counts changes of schedule) is the claim's.
"""

from __future__ import annotations

import sqlite3

from shared.models import TaskRunState, TaskStatus
from shared.store.task_endings import Outcome
from shared.store.task_rows import FREE, MANUAL


def end(connection: sqlite3.Connection, claim: sqlite3.Row, outcome: Outcome, now: int) -> None:
    """Write the outcome into the claim's row and tell its task."""
    connection.execute(
        "UPDATE task_runs SET state = ?, finished_at = ?, result = ?, error = ? WHERE id = ?",
        (outcome.state, now, outcome.result, outcome.error, claim["id"]),
    )
    connection.execute(
        "UPDATE scheduled_tasks SET last_run = ?, last_state = ?, revision = revision + 1 WHERE id = ?",
        (claim["started_at"], outcome.state, claim["task_id"]),
    )
    if not claim["slot"].startswith(MANUAL):
        _end_scheduled(connection, claim, outcome, now)


def _end_scheduled(connection: sqlite3.Connection, claim: sqlite3.Row, outcome: Outcome, now: int) -> None:
    connection.execute("UPDATE scheduled_tasks SET waits = ? WHERE id = ?", (FREE, claim["task_id"]))
    task = connection.execute(
        "SELECT schedule_type, attempts FROM scheduled_tasks WHERE id = ? AND plan = ?",
        (claim["task_id"], claim["plan"]),
    ).fetchone()
    if task is None:
        return
    if outcome.state is TaskRunState.SUCCESS:
        connection.execute(
            "UPDATE scheduled_tasks SET served_slot = ? WHERE id = ?", (int(claim["slot"]), claim["task_id"])
        )
    if task["schedule_type"] == "once":
        _end_once(connection, claim["task_id"], task["attempts"], outcome, now)


def _end_once(
    connection: sqlite3.Connection, task_id: str, failures: int, outcome: Outcome, now: int
) -> None:
    if outcome.state is TaskRunState.SUCCESS:
        _leave_active(connection, task_id, TaskStatus.COMPLETED)
        return
    failures += 1
    again = outcome.next_try(failures, now)
    connection.execute(
        "UPDATE scheduled_tasks SET attempts = ?, next_run = ? WHERE id = ?",
        (failures, again, task_id),
    )
    if again is None:
        _leave_active(connection, task_id, TaskStatus.FAILED)


def _leave_active(connection: sqlite3.Connection, task_id: str, status: TaskStatus) -> None:
    connection.execute(
        "UPDATE scheduled_tasks SET status = ? WHERE id = ? AND status = 'active'", (status, task_id)
    )

"""How a slot ends: its own row, what that means for its task, and what people hear of it.

An outcome never writes over a status or a schedule that people changed while the slot ran: the status moves
only from ``active``, the schedule only while its ``plan`` (which counts changes of schedule) is the claim's.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from shared.models import Outbound, TaskRunState, TaskStatus
from shared.store import task_rows
from shared.store.sqlite import outbound
from shared.store.task_endings import SAID, SENDER, Outcome, told
from shared.store.task_rows import FREE, MANUAL


def end(connection: sqlite3.Connection, claim: sqlite3.Row, outcome: Outcome, now: int) -> Sequence[Outbound]:
    """Write the outcome into the claim's row, tell its task and its people; returns what people are told."""
    connection.execute(
        "UPDATE task_runs SET state = ?, finished_at = ?, result = ?, error = ? WHERE id = ?",
        (outcome.state, now, outcome.result, outcome.error, claim["id"]),
    )
    task = connection.execute(
        """UPDATE scheduled_tasks SET last_run = ?, last_state = ?, waits = ?, revision = revision + 1
        WHERE id = ? RETURNING *""",
        (claim["started_at"], outcome.state, FREE, claim["task_id"]),
    ).fetchone()
    if not claim["slot"].startswith(MANUAL) and task["plan"] == claim["plan"]:
        _end_scheduled(connection, claim, task, outcome, now)
    return _tell(connection, claim, task, outcome, now)


def _end_scheduled(
    connection: sqlite3.Connection, claim: sqlite3.Row, task: sqlite3.Row, outcome: Outcome, now: int
) -> None:
    if outcome.state is TaskRunState.SUCCESS:
        connection.execute(
            "UPDATE scheduled_tasks SET served_slot = ? WHERE id = ?", (int(claim["slot"]), claim["task_id"])
        )
    if task["schedule_type"] == "once":
        _end_once(connection, task, outcome, now)
    elif task["next_run"] is None:
        _leave_active(connection, claim["task_id"], TaskStatus.COMPLETED)


def _end_once(connection: sqlite3.Connection, task: sqlite3.Row, outcome: Outcome, now: int) -> None:
    if outcome.state is TaskRunState.SUCCESS:
        _leave_active(connection, task["id"], TaskStatus.COMPLETED)
        return
    failures = task["attempts"] + 1
    again = task_rows.task(task).within_bounds(outcome.next_try(failures, now))
    connection.execute(
        "UPDATE scheduled_tasks SET attempts = ?, next_run = ? WHERE id = ?",
        (failures, again, task["id"]),
    )
    if again is None:
        _leave_active(connection, task["id"], TaskStatus.FAILED)


def _leave_active(connection: sqlite3.Connection, task_id: str, status: TaskStatus) -> None:
    connection.execute(
        "UPDATE scheduled_tasks SET status = ? WHERE id = ? AND status = 'active'", (status, task_id)
    )


def _tell(
    connection: sqlite3.Connection, claim: sqlite3.Row, task: sqlite3.Row, outcome: Outcome, now: int
) -> Sequence[Outbound]:
    home = task["conversation_id"]
    source = claim["conversation_id"] or home
    said = connection.execute(SAID, {"1": source, "2": home, "3": claim["started_at"]}).fetchall()
    texts, failing = told(task, outcome, [row["text"] for row in said])
    if failing != bool(task["told_failing"]):
        connection.execute(
            "UPDATE scheduled_tasks SET told_failing = ? WHERE id = ?", (int(failing), task["id"])
        )
    return [outbound.insert(connection, source, home, text, SENDER, now) for text in texts]

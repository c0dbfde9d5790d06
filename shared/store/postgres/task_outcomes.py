"""How a slot ends: its own row, and what that means for its task.

An outcome never writes over a status or a schedule that people changed while the slot ran: the status moves
only from ``active``, the schedule only while its ``plan`` (which counts changes of schedule) is the claim's.
"""

from __future__ import annotations

from shared.models import TaskRunState, TaskStatus
from shared.store.postgres.driver import Connection
from shared.store.rows import Row
from shared.store.task_endings import Outcome
from shared.store.task_rows import FREE, MANUAL


async def end(connection: Connection, claim: Row, outcome: Outcome, now: int) -> None:
    """Write the outcome into the claim's row and tell its task; both are locked by the transaction."""
    await connection.execute(
        "UPDATE task_runs SET state = $2, finished_at = $3, result = $4, error = $5 WHERE id = $1",
        claim["id"],
        outcome.state,
        now,
        outcome.result,
        outcome.error,
    )
    await connection.execute(
        "UPDATE scheduled_tasks SET last_run = $2, last_state = $3, revision = revision + 1 WHERE id = $1",
        claim["task_id"],
        claim["started_at"],
        outcome.state,
    )
    if not claim["slot"].startswith(MANUAL):
        await _end_scheduled(connection, claim, outcome, now)


async def _end_scheduled(connection: Connection, claim: Row, outcome: Outcome, now: int) -> None:
    await connection.execute("UPDATE scheduled_tasks SET waits = $2 WHERE id = $1", claim["task_id"], FREE)
    task = await connection.fetchrow(
        "SELECT schedule_type, attempts FROM scheduled_tasks WHERE id = $1 AND plan = $2",
        claim["task_id"],
        claim["plan"],
    )
    if task is None:
        return
    if outcome.state is TaskRunState.SUCCESS:
        await connection.execute(
            "UPDATE scheduled_tasks SET served_slot = $2 WHERE id = $1", claim["task_id"], int(claim["slot"])
        )
    if task["schedule_type"] == "once":
        await _end_once(connection, claim["task_id"], task["attempts"], outcome, now)


async def _end_once(connection: Connection, task_id: str, failures: int, outcome: Outcome, now: int) -> None:
    if outcome.state is TaskRunState.SUCCESS:
        await _leave_active(connection, task_id, TaskStatus.COMPLETED)
        return
    failures += 1
    again = outcome.next_try(failures, now)
    await connection.execute(
        "UPDATE scheduled_tasks SET attempts = $2, next_run = $3 WHERE id = $1", task_id, failures, again
    )
    if again is None:
        await _leave_active(connection, task_id, TaskStatus.FAILED)


async def _leave_active(connection: Connection, task_id: str, status: TaskStatus) -> None:
    await connection.execute(
        "UPDATE scheduled_tasks SET status = $2 WHERE id = $1 AND status = 'active'", task_id, status
    )

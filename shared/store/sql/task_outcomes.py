"""How a slot ends: its own row, what that means for its task, and what people hear of it.

An outcome never writes over a status or a schedule that people changed while the slot ran: the status moves
only from ``active``, the schedule only while its ``plan`` (which counts changes of schedule) is the claim's.
"""

from __future__ import annotations

from collections.abc import Sequence

from shared.store import task_rows
from shared.store.contract import Tx
from shared.store.rows import Row
from shared.store.sql import outbound
from shared.store.task_endings import SAID, SENDER, Outcome, told
from shared.store.task_rows import FREE, MANUAL
from shared.values import Outbound, TaskRunState, TaskStatus


async def end(tx: Tx, claim: Row, outcome: Outcome, now: int) -> Sequence[Outbound]:
    """Write the outcome into the claim's row, tell its task and its people; returns what people are told.

    The transaction has locked both rows.
    """
    await tx.execute(
        "UPDATE task_runs SET state = $2, finished_at = $3, result = $4, error = $5 WHERE id = $1",
        claim["id"],
        outcome.state,
        now,
        outcome.result,
        outcome.error,
    )
    task = await tx.fetchrow(
        """UPDATE scheduled_tasks SET last_run = $2, last_state = $3, waits = $4, revision = revision + 1
        WHERE id = $1 RETURNING *""",
        claim["task_id"],
        claim["started_at"],
        outcome.state,
        FREE,
    )
    if task is None:
        raise RuntimeError("a locked row is gone")
    if not claim["slot"].startswith(MANUAL) and task["plan"] == claim["plan"]:
        await _end_scheduled(tx, claim, task, outcome, now)
    return await _tell(tx, claim, task, outcome, now)


async def _end_scheduled(tx: Tx, claim: Row, task: Row, outcome: Outcome, now: int) -> None:
    if outcome.state is TaskRunState.SUCCESS:
        await tx.execute(
            "UPDATE scheduled_tasks SET served_slot = $2 WHERE id = $1", claim["task_id"], int(claim["slot"])
        )
    if task["schedule_type"] == "once":
        await _end_once(tx, task, outcome, now)
    elif task["next_run"] is None:
        await _leave_active(tx, claim["task_id"], TaskStatus.COMPLETED)


async def _end_once(tx: Tx, task: Row, outcome: Outcome, now: int) -> None:
    if outcome.state is TaskRunState.SUCCESS:
        await _leave_active(tx, task["id"], TaskStatus.COMPLETED)
        return
    failures = task["attempts"] + 1
    again = task_rows.task(task).within_bounds(outcome.next_try(failures, now))
    await tx.execute(
        "UPDATE scheduled_tasks SET attempts = $2, next_run = $3 WHERE id = $1", task["id"], failures, again
    )
    if again is None:
        await _leave_active(tx, task["id"], TaskStatus.FAILED)


async def _leave_active(tx: Tx, task_id: str, status: TaskStatus) -> None:
    await tx.execute(
        "UPDATE scheduled_tasks SET status = $2 WHERE id = $1 AND status = 'active'", task_id, status
    )


async def _tell(tx: Tx, claim: Row, task: Row, outcome: Outcome, now: int) -> Sequence[Outbound]:
    home = task["conversation_id"]
    source = claim["conversation_id"] or home
    said = await tx.fetch(SAID, source, home, claim["started_at"])
    texts, failing = told(task, outcome, [row["text"] for row in said])
    if failing != bool(task["told_failing"]):
        await tx.execute(
            "UPDATE scheduled_tasks SET told_failing = $2 WHERE id = $1", task["id"], int(failing)
        )
    return [await outbound.insert(tx, source, home, text, SENDER, now) for text in texts]

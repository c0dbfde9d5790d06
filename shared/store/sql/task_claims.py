"""Claiming slots: due ones, manual ones, and those of a host that died. Each function runs in a transaction.

``FOR UPDATE SKIP LOCKED`` gives each of several hosts another task: none waits for the others, none takes
what another one has. A task that can't run now is marked as waiting and leaves the index of the due ones;
the end of what it waits for brings it back. Locks are taken in one order, the task before its slot.
"""

from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Final
from uuid import uuid4

from shared import jsons
from shared.errors import InvalidInput
from shared.ids import TASK_RUN, new_id
from shared.schedules import decide, parse
from shared.store.contract import Row, Tx
from shared.store.rows import there
from shared.store.sql import task_rows
from shared.store.sql.principals import lives
from shared.store.sql.run_rows import ACTED
from shared.task_values import TaskRunState

STEPS_AT_ONCE: Final = 16
"""How many conversations or tasks one transaction may take out of the way before it lets others write."""

DEAD_AT_ONCE: Final = 16
"""How many dead owners' claims one transaction looks at."""

DEAD_RUN: Final = "SELECT 1 FROM runs WHERE state = 'running' AND lease_until <= lease_now() LIMIT 1"

EARLIEST: Final = """SELECT *, (SELECT principal_id FROM conversations WHERE id = conversation_id)
    AS principal_id FROM scheduled_tasks WHERE status = 'active' AND waits = 0 AND next_run <= $1
    AND {0} ORDER BY next_run, number LIMIT 1 FOR UPDATE SKIP LOCKED"""

NOT_OF: Final = """NOT EXISTS (SELECT 1 FROM conversations
    WHERE id = conversation_id AND principal_id = ANY($2::text[]))"""

TASK_OF_PRINCIPAL: Final = """SELECT *, (SELECT principal_id FROM conversations WHERE id = conversation_id)
    AS principal_id FROM scheduled_tasks WHERE id = $1"""

WAIT: Final = "UPDATE scheduled_tasks SET waits = $2 WHERE number = $1"

DEAD_CLAIMS: Final = """SELECT c.* FROM task_runs AS c JOIN scheduled_tasks AS t ON t.id = c.task_id
    WHERE c.state = 'running' AND c.lease_until <= lease_now() AND c.slot LIKE $2
    ORDER BY c.lease_until, c.number LIMIT $1 FOR UPDATE OF t, c SKIP LOCKED"""

OTHERS_CLAIMS: Final = """SELECT c.* FROM task_runs AS c JOIN scheduled_tasks AS t ON t.id = c.task_id
    WHERE c.state = 'running' AND c.owner <> $1 FOR UPDATE OF t, c SKIP LOCKED"""


class Pause(Enum):
    """Why a transaction ended without an answer."""

    AGAIN = auto()
    """It did its share of work and there is more."""
    DEAD_RUN = auto()
    """A run's lease ran out; runs must be recovered before anyone can say which conversations are busy."""


@dataclass(frozen=True, slots=True)
class Claimant:
    """Who claims, when, and for how long; nothing of the principals ``but``, who can have no more runs."""

    host: str
    now: int
    lease_ms: int
    but: tuple[str, ...] = ()


async def claim_due(tx: Tx, by: Claimant) -> task_rows.Claimed | Pause | None:
    """Claim what can run now: a dead owner's slot first, then the earliest due one."""
    if await tx.fetchval(DEAD_RUN) is not None:
        return Pause.DEAD_RUN
    taken = await _take_over(tx, by)
    if taken is not None:
        return taken
    earliest = EARLIEST.format(NOT_OF if by.but else "true")
    for _ in range(STEPS_AT_ONCE):
        row = await tx.fetchrow(earliest, by.now, *([list(by.but)] if by.but else ()))
        if row is None:
            return None
        claimed = await _claim(tx, row, by)
        if claimed is not None:
            return claimed
    return Pause.AGAIN


async def claim_left(tx: Tx, by: Claimant) -> task_rows.Claimed | None:
    """Take over a slot that somebody triggered in the background, on a host that is gone."""
    return await _take_over(tx, by, f"{task_rows.MANUAL}%")


async def claim_manual(tx: Tx, row: Row, by: Claimant) -> task_rows.Claimed:
    """Claim a slot of a locked task's own; raises Conflict ``task_running``."""
    task_rows.check_idle(row)
    claim = there(await _insert(tx, row, f"{task_rows.MANUAL}{uuid4()}", 1, by))
    await tx.execute(WAIT, row["number"], task_rows.WAITS_FOR_MANUAL)
    return task_rows.to_task(row), task_rows.to_task_run(claim)


async def let_go(tx: Tx, all_but: str, now: int) -> int:
    """End the leases of all claims but this owner's, and end those claims that won't be run again."""
    found = await tx.fetch(OTHERS_CLAIMS, all_but)
    for claim in found:
        await tx.execute("UPDATE task_runs SET lease_until = 0 WHERE id = $1", claim["id"])
        fate = await _fate(tx, claim)
        if isinstance(fate, task_rows.Outcome):
            await _abandon(tx, claim, fate, now)
    return len(found)


async def give_back(tx: Tx, claim: Row) -> None:
    """Undo a claim whose run never began; its slot is due again unless the schedule was changed."""
    if claim["fence"] > 1:
        # Taken over from a dead owner: it goes back to being a dead owner's.
        statement = "UPDATE task_runs SET lease_until = 0, attempt = attempt - 1 WHERE id = $1"
        await tx.execute(statement, claim["id"])
        return
    await tx.execute("DELETE FROM task_runs WHERE id = $1", claim["id"])
    manual = claim["slot"].startswith(task_rows.MANUAL)
    statement = "UPDATE scheduled_tasks SET waits = $2, revision = revision + $3 WHERE id = $1"
    await tx.execute(statement, claim["task_id"], task_rows.FREE, 0 if manual else 1)
    if not manual:
        statement = """UPDATE scheduled_tasks SET next_run = $2, runs_begun = runs_begun - 1
            WHERE id = $1 AND plan = $3"""
        await tx.execute(statement, claim["task_id"], int(claim["slot"]), claim["plan"])


async def _claim(tx: Tx, row: Row, by: Claimant) -> task_rows.Claimed | None:
    """Claim the due slot of a task, or take the task out of the way and return None."""
    if not await lives(tx, row["principal_id"]):
        await tx.execute(WAIT, row["number"], task_rows.WAITS_FOR_PRINCIPAL)
        return None
    if row["context_mode"] == "group" and await _busy(tx, row["conversation_id"]):
        await _hold_back(tx, row["conversation_id"], by.now)
        return None
    try:
        schedule = parse(row["schedule_type"], row["schedule_value"], row["timezone"])
    except InvalidInput:
        # Checked when it was stored: the zone or the rules are gone since. One task must not stop the others.
        await _move_on(tx, row, next_run=None, status="failed")
        return None
    slot = row["next_run"]
    decision = decide(schedule, row["catch_up"], slot, by.now, row["caught_up"])
    claim = await _insert(tx, row, str(slot), row["attempts"] + 1, by) if decision.run else None
    begun = row["runs_begun"] + (claim is not None)
    next_run = replace(task_rows.to_task(row), runs_begun=begun).within_bounds(decision.next_slot)
    if claim is None:
        status = "completed" if next_run is None else "active"
        await _move_on(tx, row, next_run=next_run, status=status)
        return None
    statement = """UPDATE scheduled_tasks SET next_run = $2, caught_up = $3, waits = $4, runs_begun = $5,
        revision = revision + 1 WHERE number = $1 RETURNING *"""
    moved = await tx.fetchrow(
        statement, row["number"], next_run, decision.caught_up, task_rows.WAITS_FOR_SLOT, begun
    )
    return task_rows.to_task(there(moved)), task_rows.to_task_run(claim)


async def _insert(tx: Tx, row: Row, slot: str, attempt: int, by: Claimant) -> Row | None:
    """Add the slot's row, or return None when that slot was run before (the clock was set back)."""
    statement = """INSERT INTO task_runs
            (id, task_id, slot, state, attempt, fence, owner, lease_until, plan, started_at)
        VALUES ($1, $2, $3, 'running', $4, 1, $5, lease_now() + $6::bigint, $7, $8)
        ON CONFLICT (task_id, slot) DO NOTHING RETURNING *"""
    return await tx.fetchrow(
        statement, new_id(TASK_RUN), row["id"], slot, attempt, by.host, by.lease_ms, row["plan"], by.now
    )


async def _move_on(tx: Tx, row: Row, *, next_run: int | None, status: str) -> None:
    statement = """UPDATE scheduled_tasks SET next_run = $2, status = $3, caught_up = 0,
        revision = revision + 1 WHERE number = $1"""
    await tx.execute(statement, row["number"], next_run, status)


async def _busy(tx: Tx, conversation_id: str) -> bool:
    # The lock makes the run's end wait until this transaction has marked who waits for it: an end that came
    # in between would free nobody, and the marked task would wait for ever.
    running = await tx.fetchval(
        "SELECT 1 FROM runs WHERE conversation_id = $1 AND state = 'running' FOR SHARE", conversation_id
    )
    if running is None:
        # Nor would a step that waits for a person, or is about to go on, let it begin.
        running = await tx.fetchval(
            "SELECT 1 FROM approvals WHERE conversation_id = $1 AND ended_at IS NULL AND kind <> 'budget'",
            conversation_id,
        )
    return running is not None


async def _hold_back(tx: Tx, conversation_id: str, now: int) -> None:
    # Those that another host is looking at are marked by it.
    statement = """UPDATE scheduled_tasks SET waits = $1 WHERE number IN (SELECT number FROM scheduled_tasks
            WHERE conversation_id = $2 AND context_mode = 'group' AND status = 'active' AND waits = 0
            AND next_run <= $3 FOR UPDATE SKIP LOCKED)"""
    await tx.execute(statement, task_rows.WAITS_FOR_CONVERSATION, conversation_id, now)


async def _take_over(tx: Tx, by: Claimant, slots: str = "%") -> task_rows.Claimed | None:
    """End the claims of dead owners, and take over the first one that is to be run again."""
    for claim in await tx.fetch(DEAD_CLAIMS, DEAD_AT_ONCE, slots):
        fate = await _fate(tx, claim)
        if isinstance(fate, task_rows.Outcome):
            await _abandon(tx, claim, fate, by.now)
        elif fate is task_rows.Fate.RERUN:
            return await _rerun(tx, claim, by)
    return None


async def _abandon(tx: Tx, claim: Row, outcome: task_rows.Outcome, now: int) -> None:
    await tx.execute("UPDATE runs SET again = NULL WHERE id = $1", claim["run_id"])
    await task_rows.end(tx, claim, outcome, now)


async def _fate(tx: Tx, claim: Row) -> task_rows.Outcome | task_rows.Fate:
    run = await tx.fetchrow(
        "SELECT state, code, error, answer, effect_ahead, again FROM runs WHERE id = $1", claim["run_id"]
    )
    if run is not None and run["code"] == "retryable" and run["effect_ahead"] & ACTED:
        # Run again from its beginning it would act again.
        return task_rows.abandoned("an earlier step of it had an effect", final=True)
    if run is None or run["code"] == "retryable":
        return await _fate_without_effect(tx, claim, again=run is not None and run["again"] is not None)
    if run["state"] == "running":
        return task_rows.Fate.WAIT
    answer = {} if run["answer"] is None else jsons.loads(run["answer"])
    return task_rows.Outcome(
        TaskRunState(run["state"]), answer.get("result"), run["error"], final=run["code"] == "interrupted"
    )


async def _fate_without_effect(tx: Tx, claim: Row, *, again: bool) -> task_rows.Outcome | task_rows.Fate:
    """Judge a claim whose run did nothing that can be seen from outside; ``again``: nobody waits for it."""
    row = there(await tx.fetchrow(TASK_OF_PRINCIPAL, claim["task_id"]))
    manual = claim["slot"].startswith(task_rows.MANUAL)
    if manual and not again:
        return task_rows.abandoned("a manual run is repeated by who asked for it")
    if manual and not await lives(tx, row["principal_id"]):
        return task_rows.abandoned("its principal is suspended")
    if not manual and claim["fence"] >= task_rows.TRIES:
        return task_rows.abandoned(f"{task_rows.TRIES} hosts in a row stopped while they ran it", final=True)
    if not manual and row["plan"] != claim["plan"]:
        return task_rows.abandoned("the schedule was changed meanwhile")
    if not manual and row["status"] != "active":
        return task_rows.abandoned(f"the task is {row['status']}")
    if row["context_mode"] == "group" and await _busy(tx, row["conversation_id"]):
        return task_rows.Fate.WAIT
    return task_rows.Fate.RERUN


async def _rerun(tx: Tx, claim: Row, by: Claimant) -> task_rows.Claimed:
    statement = """UPDATE task_runs SET fence = fence + 1, attempt = attempt + 1, owner = $2,
        lease_until = lease_now() + $3::bigint, started_at = $4,
        run_id = CASE WHEN slot LIKE $5 THEN run_id END WHERE id = $1 RETURNING *"""
    again = await tx.fetchrow(statement, claim["id"], by.host, by.lease_ms, by.now, f"{task_rows.MANUAL}%")
    row = await tx.fetchrow("SELECT * FROM scheduled_tasks WHERE id = $1", claim["task_id"])
    return task_rows.to_task(there(row)), task_rows.to_task_run(there(again))

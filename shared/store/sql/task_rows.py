"""Rows of tasks and their slots inside a transaction: values, quotas, how a slot ends and what people hear.

An outcome never writes over a status or a schedule that people changed while the slot ran: the status moves
only from ``active``, the schedule only while its ``plan`` (which counts changes of schedule) is the claim's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from shared.errors import Conflict
from shared.store.contract import Row, Tx
from shared.store.rows import optional, reader, there
from shared.store.sql import conversation_rows
from shared.store.sql.conversation_rows import Outbound
from shared.task_values import Task, TaskRun, TaskRunState, TaskStatus

FREE: Final = 0
"""``waits``: the task can be claimed when it is due."""
WAITS_FOR_CONVERSATION: Final = 1
"""``waits``: a group task that was passed over; the end of its conversation's run frees it."""
WAITS_FOR_SLOT: Final = 2
"""``waits``: a slot of its schedule is claimed; the end of that claim frees it."""
WAITS_FOR_MANUAL: Final = 3
"""``waits``: a manual run is claimed; the end of that claim frees it."""
WAITS_FOR_PRINCIPAL: Final = 4
"""``waits``: its principal isn't active; making it so frees its tasks."""

MANUAL: Final = "manual-"
"""How the slot of a manual trigger starts; a scheduled one is its due time in milliseconds."""


def check_idle(row: Row) -> None:
    """Raise Conflict ``task_running`` when a run of the task has not ended: it never overlaps itself."""
    if row["waits"] in (WAITS_FOR_SLOT, WAITS_FOR_MANUAL):
        raise Conflict(
            f"Task {row['id']} is running, and a task never overlaps itself; try again when it has ended.",
            code="task_running",
        )


to_task: Final = reader(
    Task,
    {"running": "waits"},
    status=TaskStatus,
    last_state=optional(TaskRunState),
    running=WAITS_FOR_SLOT.__eq__,
)
to_task_run: Final = reader(TaskRun, state=TaskRunState)


@dataclass(frozen=True, slots=True)
class TaskMetrics:
    """Figures for /metrics: tasks due now, slots running, seconds the oldest due one is late."""

    due: int
    running: int
    overdue_seconds: float


# The operator has no limit of its own. Whose terms they are, a tool server's role can't read.
QUOTAS: Final = """SELECT c.principal_id, CASE WHEN c.principal_id <> 'operator'
        THEN task_limit(c.principal_id) END AS limit_of_principal, (SELECT count(*) FROM
            (SELECT 1 FROM scheduled_tasks WHERE conversation_id = $1 LIMIT $2) AS own) AS tasks
    FROM conversations AS c WHERE c.id = $1"""


async def keep_quota(tx: Tx, conversation_id: str, quota: int) -> None:
    """Make sure that one more task fits, of its conversation and of its principal; raises Conflict."""
    await tx.lock("quota", conversation_id)
    found = await tx.fetchrow(QUOTAS, conversation_id, quota)
    if found is None:
        return
    if found["tasks"] >= quota:
        await _make_room(tx, conversation_id, found["tasks"])
    if found["limit_of_principal"] is not None:
        await _keep_of_principal(tx, found["principal_id"], found["limit_of_principal"])


async def _make_room(tx: Tx, conversation_id: str, count: int) -> None:
    statement = """DELETE FROM scheduled_tasks WHERE number = (SELECT min(number) FROM scheduled_tasks
            WHERE conversation_id = $1 AND status || '' = 'completed') RETURNING number"""
    removed = await tx.fetchval(statement, conversation_id)
    if removed is None:
        raise Conflict(
            f"Conversation {conversation_id} owns {count} tasks, which is the limit; cancel one first.",
            code="task_quota",
        )


async def _keep_of_principal(tx: Tx, principal_id: str, limit: int) -> None:
    await tx.lock("tasks of", principal_id)
    for row in await tx.fetch("SELECT trim_tasks($1)", principal_id):
        await remove_own_conversation(tx, row[0])
    count = await tx.fetchval("SELECT count_tasks_of($1)", principal_id)
    if count >= limit:
        raise Conflict(
            f"{principal_id} has {count} tasks, and its limit (tasks) is {limit}; cancel one first.",
            code="task_quota",
        )


async def remove_own_conversation(tx: Tx, conversation_id: str) -> None:
    """Remove a task's own hidden conversation with its task, unless something runs in its name."""
    statement = """DELETE FROM conversations WHERE id = $1 AND temporary = 1 AND owner_id = $1
        AND NOT EXISTS (SELECT 1 FROM scheduled_tasks WHERE conversation_id = $1)
        AND NOT EXISTS (SELECT 1 FROM runs WHERE state = 'running' AND conversation_id IN
            (SELECT id FROM conversations WHERE temporary = 1 AND owner_id = $1))"""
    await tx.execute(statement, conversation_id)


TRIES: Final = 3
"""How often a ``once`` task is tried, and how often a slot is started whose host keeps dying."""

BACKOFF_MS: Final = (60_000, 300_000)
"""How long a ``once`` task waits after its first and its second failure, in milliseconds."""

NOT_REPEATED: Final = frozenset({TaskRunState.CANCELLED, TaskRunState.PAUSED})
"""Endings that somebody has to look at first."""

ABANDONED: Final = "The host that ran this slot stopped before it finished; it was not run again because {}."

LARGEST_TREE: Final = 10
"""Tasks that have not ended, of one that a person made and all that its runs and theirs made."""

DEEPEST_TREE: Final = 2
"""Floors below the task that a person made."""

ALL_QUIET: Final = "HEARTBEAT_OK"
"""An answer that is for nobody."""

FAILED: Final = "⚠️ The scheduled task {} failed: {}{} You will hear from it again when it works."
WORKS_AGAIN: Final = "The scheduled task {} works again."
LONGEST_EXCERPT: Final = 80
SENDER: Final = "assistant"

Claimed = tuple[Task, TaskRun]

# The task whose run is going on in the conversation $1. A temporary one has no other runs.
RUNNING_TASK: Final = """SELECT t.* FROM scheduled_tasks AS t WHERE id = (SELECT task_id FROM task_runs AS c
    WHERE c.conversation_id = $1 AND (
        c.run_id IN (SELECT id FROM runs WHERE conversation_id = $1 AND state = 'running')
        OR EXISTS (SELECT 1 FROM conversations WHERE id = $1 AND temporary = 1))
    ORDER BY c.number DESC LIMIT 1)"""
COMPLETE: Final = """UPDATE scheduled_tasks
    SET status = 'completed', next_run = NULL, revision = revision + 1 WHERE id = $1"""


class Fate(Enum):
    """What becomes of a dead owner's claim, when it has no outcome yet."""

    RERUN = auto()
    WAIT = auto()


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a slot ended; ``final``: whatever the task's rules, it is not tried again.

    ``output``: its result, where that is JSON of a promised shape.
    """

    state: TaskRunState
    result: str | None = None
    error: str | None = None
    final: bool = False
    output: str | None = None

    def next_try(self, failures: int, now: int) -> int | None:
        """Return when a ``once`` task is tried again that has failed so often, None if it isn't."""
        if self.final or self.state in NOT_REPEATED or failures >= TRIES:
            return None
        return now + BACKOFF_MS[failures - 1]


def abandoned(reason: str, *, final: bool = False) -> Outcome:
    """Return the outcome of a dead owner's slot that is not run again."""
    return Outcome(TaskRunState.ERROR, error=ABANDONED.format(reason), final=final)


SAID: Final = """SELECT text FROM outbound_messages
    WHERE source_id = $1 AND conversation_id = $2 AND created_at >= $3"""


def check_tree(depth: int, size: int) -> None:
    """Raise Conflict ``task_tree`` where a run of a task of that depth, in so large a tree, adds one more."""
    if depth >= DEEPEST_TREE:
        raise Conflict(
            "This run belongs to a task that a task's run made, which may not make more of them. "
            "Change its own schedule instead, or let people decide.",
            code="task_tree",
        )
    if size >= LARGEST_TREE:
        raise Conflict(
            f"This is a scheduled task's run, and {size} tasks have come of that task, which is the limit. "
            "Cancel one first, or let people decide.",
            code="task_tree",
        )


def told(task: Row, outcome: Outcome, said: list[str]) -> tuple[list[str], bool]:
    """Return what people are told of an outcome, and whether they know then that the task fails.

    They hear of a failure once, and once when the task works again; of an answer unless it is ALL_QUIET, was
    said in the run already (``said``), or the task delivers none.
    """
    known = bool(task["told_failing"])
    if outcome.state in (TaskRunState.ERROR, TaskRunState.TIMEOUT):
        return ([] if known else [_failure(task, outcome)]), True
    if outcome.state is not TaskRunState.SUCCESS:
        return [], known
    texts = [WORKS_AGAIN.format(_excerpt(task["prompt"]))] if known else []
    answer = (outcome.result or "").strip()
    quiet = answer.strip("`*_\"'.!") in ("", ALL_QUIET)
    if task["deliver"] == "answer" and not quiet and answer not in (text.strip() for text in said):
        texts.append(answer)
    return texts, False


def _failure(task: Row, outcome: Outcome) -> str:
    reason = (outcome.error or outcome.state.value).strip()
    end = "" if reason.endswith((".", "!", "?")) else "."
    return FAILED.format(_excerpt(task["prompt"]), reason, end)


def _excerpt(text: str) -> str:
    line = " ".join(text.split())
    return f"“{line if len(line) <= LONGEST_EXCERPT else line[: LONGEST_EXCERPT - 1] + '…'}”"


async def end(tx: Tx, claim: Row, outcome: Outcome, now: int) -> Sequence[Outbound]:
    """Write the outcome into the claim's row, tell its task and its people; returns what people are told.

    The transaction has locked both rows.
    """
    statement = """UPDATE task_runs SET state = $2, finished_at = $3, result = $4, error = $5, output = $6
        WHERE id = $1"""
    said = (outcome.result, outcome.error, outcome.output)
    await tx.execute(statement, claim["id"], outcome.state, now, *said)
    statement = """UPDATE scheduled_tasks SET last_run = $2, last_state = $3, waits = $4,
        revision = revision + 1 WHERE id = $1 RETURNING *"""
    values = (claim["task_id"], claim["started_at"], outcome.state, FREE)
    task = there(await tx.fetchrow(statement, *values))
    if not claim["slot"].startswith(MANUAL) and task["plan"] == claim["plan"]:
        await _end_scheduled(tx, claim, task, outcome, now)
    return await _tell(tx, claim, task, outcome, now)


async def end_waiting(tx: Tx, run: Row, outcome: Outcome, now: int) -> None:
    """End the slot that waits for the end of the chain that this run belongs to, if one does."""
    statement = """SELECT c.* FROM task_runs AS c JOIN scheduled_tasks AS t ON t.id = c.task_id
        WHERE c.conversation_id = $1 AND c.state = 'paused' AND c.finished_at IS NULL AND c.run_id IN
        (SELECT id FROM runs WHERE id = $2 OR (root_id = $2 AND previous_id IS NOT NULL))
        FOR UPDATE OF t, c"""
    claim = await tx.fetchrow(statement, run["conversation_id"], run["root_id"] or run["id"])
    if claim is not None:
        await end(tx, claim, outcome, now)


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
    again = to_task(task).within_bounds(outcome.next_try(failures, now))
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
    return [await conversation_rows.insert_outbound(tx, source, home, text, SENDER, now) for text in texts]

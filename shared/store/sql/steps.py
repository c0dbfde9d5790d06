"""The open calls of a conversation inside other transactions: asked, met, answered, left, expired.

They are one *step*: the calls of one reply that have no result yet.
"""

from collections.abc import Mapping
from typing import Any, Final

from shared import jsons
from shared.approval_values import ELICITATION, Approval, ApprovalStatus
from shared.errors import ApprovalPending, ConversationBusy
from shared.ids import MESSAGE, new_id
from shared.store import rows
from shared.store.contract import Row, Tx
from shared.store.sql import audit
from shared.store.sql.conversations import store_messages
from shared.store.sql.task_rows import Outcome, end_waiting
from shared.task_values import TaskRunState
from shared.values import Lease, NewMessage, NewRun, RunEnd

to_approval: Final = rows.reader(
    Approval,
    input=jsons.loads,
    status=ApprovalStatus,
    decided_by=rows.optional(jsons.loads),
    remembered=bool,
    is_error=bool,
    shown=lambda stored: jsons.loads(stored or "[]"),
)

SELECT: Final = """SELECT a.*, (SELECT id FROM runs AS next WHERE next.previous_id = a.run_id) AS next_run_id
    FROM approvals AS a"""
STEP: Final = "conversation_id = $1 AND ended_at IS NULL AND kind <> 'budget'"
PENDING: Final = f"{STEP} AND status = 'pending'"
COLUMNS: Final = (
    *("id", "conversation_id", "run_id", "kind", "call_id", "tool", "input", "input_sha256", "reason"),
    *("base_sha256", "subagent", "status", "created_at"),
)
# Whoever asks, answers or begins a run locks the conversation first.
LOCK: Final = "SELECT principal_id FROM conversations WHERE id = $1 FOR UPDATE"
LAST_RUN: Final = "(SELECT id FROM runs WHERE conversation_id = $1 ORDER BY number DESC LIMIT 1)"
NOT_READY: Final = "UPDATE runs SET ready_at = NULL WHERE conversation_id = $1 AND ready_at IS NOT NULL"
FORGET_SUBAGENTS: Final = "DELETE FROM stopped_subagents WHERE conversation_id = $1"
FREE_TASKS: Final = "UPDATE scheduled_tasks SET waits = 0 WHERE conversation_id = $1 AND waits = 1"

HOSTS_FAULT: Final = frozenset({"retryable", "shutdown"})
EXPIRED: Final = "Nobody answered in time; the call was not made."
TURNED_DOWN: Final = "What the run waited for was denied by a message."
CANCELLED: Final = "The run was cancelled while it waited for an answer."


async def ask(tx: Tx, lease: Lease, end: RunEnd, now: int) -> None:
    """Store a pausing run's requests, how far its subagents came, and what it was asked with."""
    for each in end.requests:
        await tx.execute(
            f"""INSERT INTO approvals ({", ".join(COLUMNS)}, expires_at)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, 'pending', $12,
                wall_now() + $13::bigint)""",
            *(each.id, lease.conversation_id, lease.run_id, each.kind, each.call_id, each.tool),
            *(jsons.dumps(each.input), each.input_sha256, each.reason, each.base_sha256, each.subagent),
            *(now, each.life_ms),
        )
    await tx.executemany(
        "INSERT INTO stopped_subagents (conversation_id, call_id, state) VALUES ($1, $2, $3)",
        [(lease.conversation_id, call, jsons.dumps(state)) for call, state in end.stopped.items()],
    )
    await tx.execute("UPDATE runs SET asked = $2 WHERE id = $1", lease.run_id, end.asked)


async def meet(tx: Tx, new: NewRun, conversation_id: str, *, goes_on: bool, ready: bool) -> bool:
    """Let a run that begins meet what waits in its conversation.

    Return whether it goes on with that: it has a step to finish, or its message answers a question.

    Raises ApprovalPending, ConversationBusy (the step is about to go on by itself).
    """
    await expire_step(tx, conversation_id, new.now)
    pending = await tx.fetch(f"SELECT id FROM approvals WHERE {PENDING} ORDER BY number", conversation_id)
    if pending and (goes_on or not new.deny_pending):
        raise ApprovalPending(conversation_id, [row["id"] for row in pending])
    statement = """UPDATE approvals SET status = $2, decided_at = $3, decided_by = $4, ended_at = $3
        WHERE conversation_id = $1 AND kind = 'budget' AND ended_at IS NULL"""
    becomes = ApprovalStatus.ALLOWED if goes_on else ApprovalStatus.DROPPED
    await tx.execute(statement, conversation_id, becomes, new.now, jsons.dumps(new.by))
    if goes_on:
        return await tx.fetchval(f"SELECT 1 FROM approvals WHERE {STEP} LIMIT 1", conversation_id) is not None
    if ready and not new.deny_pending:
        raise ConversationBusy(conversation_id)
    answers = await _answer_questions(tx, new, conversation_id)
    if await settle(tx, conversation_id, None, ApprovalStatus.DENIED, new.now, new.by) and not answers:
        last = rows.there(await tx.fetchrow(f"SELECT * FROM runs WHERE id = {LAST_RUN}", conversation_id))
        await end_waiting(tx, last, Outcome(TaskRunState.CANCELLED, error=TURNED_DOWN, final=True), new.now)
    decided = "SELECT id, status FROM approvals WHERE id = ANY($1::text[])"
    for row in await tx.fetch(decided, [row["id"] for row in pending]) if pending else ():
        await audit.note(tx, f"approval.{row['status']}", new.principal_id, row["id"], new.by)
    return answers


async def _answer_questions(tx: Tx, new: NewRun, conversation_id: str) -> bool:
    """Let a message be the answer to the questions that wait; return whether there were any."""
    if new.message is None or new.replaces is not None or not (new.message.text or "").strip():
        return False
    statement = f"""UPDATE approvals SET status = 'answered', message = $2, decided_at = $3, decided_by = $4
        WHERE {PENDING} AND kind = 'question' AND reason <> '{ELICITATION}'"""
    answered = await tx.execute(statement, *(conversation_id, new.message.text, new.now, jsons.dumps(new.by)))
    return answered > 0


async def settle(
    tx: Tx,
    conversation_id: str,
    run_id: str | None,
    unmade: ApprovalStatus,
    now: int,
    by: Mapping[str, Any] | None = None,
) -> bool:
    """End a step whose calls are not made any more, with a result for each; return whether there was one.

    ``unmade`` is what becomes of those that wait; a call that was allowed already is dropped, or interrupted.
    """
    allowed = unmade if unmade is ApprovalStatus.INTERRUPTED else ApprovalStatus.DROPPED
    for status, becomes in ((ApprovalStatus.PENDING, unmade), (ApprovalStatus.ALLOWED, allowed)):
        statement = f"""UPDATE approvals SET status = $3, decided_at = $4,
            decided_by = coalesce(decided_by, $5) WHERE {STEP} AND status = $2"""
        await tx.execute(statement, *(conversation_id, status, becomes, now, jsons.dumps(by) if by else None))
    step = await tx.fetch(f"{SELECT} WHERE a.{STEP} ORDER BY a.number", conversation_id)
    if not step:
        return False
    blocks = {row["call_id"]: to_approval(row).result() for row in step}
    message = NewMessage(new_id(MESSAGE), "user", [*blocks.values()])
    await store_messages(tx, conversation_id, run_id, [message], now)
    await tx.execute(f"UPDATE approvals SET ended_at = $2 WHERE {STEP}", conversation_id, now)
    await tx.execute(NOT_READY, conversation_id)
    await tx.execute(FORGET_SUBAGENTS, conversation_id)
    return True


async def answered(tx: Tx, lease: Lease, now: int) -> None:
    """Note that the step's results are stored."""
    statement = f"""UPDATE approvals SET ended_at = $2,
        status = CASE WHEN status = 'allowed' THEN 'done' ELSE status END WHERE {STEP}"""
    await tx.execute(statement, lease.conversation_id, now)
    await tx.execute(FORGET_SUBAGENTS, lease.conversation_id)


async def left(tx: Tx, row: Row, code: str | None, *, acted: bool, now: int) -> bool:
    """Say what becomes of a step whose run (``row``) ended before it stored the results.

    ``acted``: a call may have been made. If none was, and the host is to blame for the end, the step goes on
    by itself; then True is returned.
    """
    conversation_id = row["conversation_id"]
    if acted or code == "cancelled":
        unmade = ApprovalStatus.INTERRUPTED if acted else ApprovalStatus.DROPPED
        await settle(tx, conversation_id, row["id"], unmade, now)
    elif code in HOSTS_FAULT and await tx.fetchval(f"SELECT 1 FROM approvals WHERE {STEP}", conversation_id):
        await tx.execute("UPDATE runs SET ready_at = $2 WHERE id = $1", row["id"], now)
        return True
    return False


async def expire_step(tx: Tx, conversation_id: str, now: int) -> None:
    """End a step that nobody answered in time: what was allowed and has not run expires too."""
    await tx.fetchrow(LOCK, conversation_id)
    due = f"SELECT 1 FROM approvals WHERE {PENDING} AND expires_at <= wall_now() LIMIT 1"
    if await tx.fetchval(due, conversation_id) is None:
        return
    statement = f"""UPDATE approvals SET status = 'expired', decided_at = $2
        WHERE {STEP} AND status IN ('pending', 'allowed')"""
    await tx.execute(statement, conversation_id, now)
    await end_run(tx, conversation_id, "approval_expired", EXPIRED, now)


async def end_run(
    tx: Tx, conversation_id: str, code: str, said: str, now: int, *, state: str = "paused"
) -> str:
    """Change how a run that waits has ended; free what waited for it."""
    row = rows.there(await tx.fetchrow(f"SELECT * FROM runs WHERE id = {LAST_RUN}", conversation_id))
    status = "paused" if state == "paused" else "error"
    answer = {**jsons.loads(row["answer"] or "{}"), "status": status, "code": code, "error": said}
    await tx.execute(
        "UPDATE runs SET state = $2, code = $3, error = $4, answer = $5, ready_at = NULL WHERE id = $1",
        *(row["id"], state, code, said, jsons.dumps(answer)),
    )
    await tx.execute(FREE_TASKS, conversation_id)
    ended = TaskRunState.CANCELLED if state == "cancelled" else TaskRunState.ERROR
    await end_waiting(tx, row, Outcome(ended, error=said, final=True), now)
    return str(row["id"])

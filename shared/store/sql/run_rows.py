"""Rows of runs inside a transaction: a begin with its lease, what the lease lets write, an end without it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from shared import jsons
from shared.errors import Conflict, ConversationBusy, NoConversation, Suspended
from shared.principals import OPERATOR
from shared.store.contract import Row, Tx
from shared.store.sql import audit, conversations, lifetimes, steps, usage, webhooks
from shared.store.sql.channels import say
from shared.store.sql.chats import Saying, told_of
from shared.store.sql.conversation_rows import branch, is_last
from shared.store.sql.conversations import REFUSED, remove_last, store_messages
from shared.store.sql.lifetimes import hold
from shared.store.sql.task_rows import Outcome, end_waiting
from shared.task_values import TaskRunState
from shared.usage_values import Amount, Spending
from shared.values import Chain, Event, Lease, NewMessage, NewRun, RunState

RECOVERED_SEQ_GAP: Final = 1_000_000
"""A recovered run's last event leaves this gap: a reader may have seen events that were not stored yet."""

ON_ITS_SLOT: Final = 0
"""``again`` of a run for a task's slot: whoever takes that over begins the task again."""

AHEAD: Final = 1
"""Bit of a run's ``effect_ahead``: the next thing that happens may have an outward effect."""
ACTED: Final = 2
"""Bit of a run's ``effect_ahead``: a step of it had one, or may have had one."""

INTERRUPTED: Final = (
    "The host stopped, or lost the store, while this run was in flight. Its last step may have had an "
    "effect, so it was not repeated; its finished steps are in the history."
)
RETRYABLE: Final = (
    "The host stopped, or lost the store, while this run was in flight. Its last step had no outward effect: "
    "sending the message again is safe."
)

LAST_RUN: Final = "SELECT * FROM runs WHERE conversation_id = $1 ORDER BY number DESC LIMIT 1"
# Of a conversation that was moved in, no run is known.
LAST_MESSAGE: Final = """SELECT NULL AS id, role AS state, NULL AS code, id AS message_id
    FROM messages WHERE conversation_id = $1 ORDER BY seq DESC LIMIT 1"""

OVER: Final = {
    REFUSED: "the model refused its last message, which is not sent again; say it in other words",
    "prompt_too_long": "its last message doesn't fit into the model's window; send a shorter one",
}
"""Why nothing goes on after such an error, by its code."""


@dataclass(frozen=True, slots=True)
class CutOff:
    """How a run ends whose owner is gone."""

    error: str
    code: str
    answer: dict[str, Any]

    def events(self, last_seq: int | None) -> tuple[Event, Event]:
        """Return the last two events of the run whose newest stored one is ``last_seq``."""
        seq = (last_seq or 0) + RECOVERED_SEQ_GAP
        told = Event(seq, "error", {"error": self.error, "code": self.code})
        return told, Event(seq + 1, "done", self.answer)


def cut_off(row: Row) -> CutOff:
    """Return how the run in this row of ``runs`` ends: its last step may be repeated, or may not."""
    error, code = (INTERRUPTED, "interrupted") if row["effect_ahead"] & AHEAD else (RETRYABLE, "retryable")
    answer = {
        "status": "error",
        "conversation_id": row["conversation_id"],
        "message_id": row["message_id"],
        "run_id": row["id"],
        "root_run_id": row["root_id"] or row["id"],
        "error": error,
        "code": code,
    }
    if row["previous_id"] is not None:
        answer["previous_run_id"] = row["previous_id"]
    return CutOff(error, code, answer)


async def record_events(tx: Tx, run_id: str, events: Iterable[Event], now: int) -> None:
    """Store events of a run; one that is there already stays as it is."""
    await tx.executemany(
        """INSERT INTO run_events (run_id, seq, name, data, created_at) VALUES ($1, $2, $3, $4, $5)
        ON CONFLICT DO NOTHING""",
        [(run_id, event.seq, event.name, jsons.dumps(event.data), now) for event in events],
    )


async def cut_off_run(tx: Tx, row: Row, now: int) -> None:
    """End a run whose owner is gone, and tell whoever follows its events."""
    ending = cut_off(row)
    statement = """UPDATE runs SET state = 'error', finished_at = $2, error = $3, code = $4, answer = $5,
            spent_tokens = spent_tokens + reserved_tokens,
            spent_microdollars = spent_microdollars + reserved_microdollars WHERE id = $1"""
    await tx.execute(statement, row["id"], now, ending.error, ending.code, jsons.dumps(ending.answer))
    last = await tx.fetchval("SELECT max(seq) FROM run_events WHERE run_id = $1", row["id"])
    await record_events(tx, row["id"], ending.events(last), now)
    if row["previous_id"] is not None:
        await end_of_chain(tx, row["id"], ending.answer, now)
    unsettled = Spending(microdollars=row["reserved_microdollars"], unsettled_tokens=row["reserved_tokens"])
    await usage.count(tx, row["conversation_id"], unsettled, now, runs=1)


async def end_of_chain(tx: Tx, run_id: str, answer: Mapping[str, Any], now: int) -> None:
    """Say what the end of a run that continued others means to its open step and to its task's slot."""
    row = await tx.fetchrow("SELECT * FROM runs WHERE id = $1", run_id)
    code = answer.get("code")
    if row is None or await steps.left(tx, row, code, acted=bool(row["effect_ahead"] & AHEAD), now=now):
        return
    state = TaskRunState.CANCELLED if code == "cancelled" else TaskRunState(answer["status"])
    result = answer.get("result")
    output = result if "output" in answer else None
    outcome = Outcome(state, result, answer.get("error"), final=code == "interrupted", output=output)
    await end_waiting(tx, row, outcome, now)
    if chat := jsons.loads(row["asked"] or "{}").get("chat"):
        await _tell_chat(tx, row, chat, answer, now)
    if state is TaskRunState.SUCCESS:
        # Sealed credentials are kept as long as something may go on with them.
        await tx.execute("UPDATE runs SET asked = NULL WHERE id = $1", run_id)


async def _tell_chat(tx: Tx, run: Row, chat: Sequence[str], answer: Mapping[str, Any], now: int) -> None:
    """Tell the chat where the chain began how it went on; one whose own message goes on hears it anyway."""
    channel, chat_id, reply_to = chat
    statement = """SELECT 1 FROM channel_updates WHERE channel = $1 AND urgent = 0 AND chat_id = $2
        AND settled_at IS NULL AND run_id = $3"""
    waits = await tx.fetchval(statement, *(channel, chat_id, run["id"]))
    if waits is None and (text := told_of(answer.get("result") or "", answer)):
        saying = Saying(f"run:{run['id']}", text, reply_to)
        await say(tx, channel, chat_id, run["conversation_id"], saying, now)


async def begin(tx: Tx, new: NewRun) -> Lease:
    """Take the lease inside a transaction; raises as the contract's ``begin`` does."""
    conversation_id = new.conversation_id
    messages: tuple[NewMessage, ...] = ()
    again: Row | None = None
    before: Row | None = None
    if new.idempotency is not None:
        again = await lifetimes.retry_of(tx, new.idempotency, new.now, allowed=not new.background)
    elif new.begun_again is not None:
        again = await _to_begin_again(tx, new.begun_again)
    if again is not None:
        conversation_id = again["conversation_id"]
    elif new.create and new.after is not None:
        await branch(tx, new.after, conversation_id, new.principal_id, new.now)
    elif new.create and new.message is not None:
        await conversations.insert(
            tx,
            conversation_id,
            new.now,
            new.parent_id,
            new.temporary,
            principal_id=new.principal_id,
            begun_by=new.begun_by,
        )
    if new.claim is not None:
        # With the run, not before it: a host that was stopped in between would serve a slot that another one
        # has taken over and served.
        await hold(tx, new.claim, "run_id = $4, conversation_id = $5", new.run_id, conversation_id)
        if new.claim.run_id is not None:
            before = await tx.fetchrow("SELECT * FROM runs WHERE id = $1", new.claim.run_id)
    taken = await _take(tx, conversation_id, new.principal_id, new.now)
    goes_on = again is not None or new.message is None
    if new.after is not None and not (goes_on or new.create or await is_last(tx, new.after)):
        raise ConversationBusy(conversation_id)
    if new.ready and taken["ready_at"] is None:
        raise ConversationBusy(conversation_id)
    if taken["principal_id"] != OPERATOR:
        await audit.crossed(tx, taken["principal_id"], conversation_id)
    if new.lifts:
        await audit.note(tx, "budget.lifted", taken["principal_id"], conversation_id)
    ready = taken["ready_at"] is not None
    met = bool(taken["waits"]) and await steps.meet(tx, new, conversation_id, goes_on=goes_on, ready=ready)
    if ready and not goes_on:
        # A lifted budget holds up no message; what was to go on with it doesn't any more.
        await tx.execute(steps.NOT_READY, conversation_id)
    session_id = taken["session_id"]
    if again is not None:
        before, message_id = again, again["message_id"]
    elif new.message is None:
        last = await _unfinished(tx, conversation_id)
        before, message_id = (None if last["id"] is None else last), last["message_id"]
    else:
        message_id, messages = new.message.id, (new.message,)
        if met:
            before = await tx.fetchrow(LAST_RUN, conversation_id)
        if new.replaces is not None:
            session_id = await remove_last(tx, conversation_id, new.replaces)
    chain = _chain(new.run_id, before)
    await _insert(tx, new, conversation_id, taken["fence"], message_id, chain, _again(new, before))
    asked = None if before is None else before["asked"]
    if before is not None and (asked or before["ready_at"] or before["again"] is not None):
        await tx.execute(
            "UPDATE runs SET ready_at = NULL, again = NULL, asked = NULL WHERE id = $1", before["id"]
        )
        # Tokens that people allowed are for one run.
        still = asked and jsons.dumps({**jsons.loads(asked), "allow_tokens": None})
        await tx.execute("UPDATE runs SET asked = $2 WHERE id = $1", new.run_id, still)
    await store_messages(tx, conversation_id, new.run_id, messages, new.now)
    if new.webhook is not None and chain.previous_run_id is None:
        await webhooks.insert(tx, new.webhook)
    if new.idempotency is not None:
        await lifetimes.keep_key(tx, new.idempotency, new.run_id, conversation_id, new.now)
    return Lease(
        new.run_id,
        conversation_id,
        new.owner,
        taken["fence"],
        message_id,
        session_id,
        temporary=bool(taken["temporary"]),
        trusted=bool(taken["trusted"]),
        said_seq=taken["said_seq"] or 0,
        compaction=taken["compaction"] or 0,
        principal_id=taken["principal_id"],
        chain=chain,
        step=met and goes_on,
        asked=asked,
    )


async def _to_begin_again(tx: Tx, run_id: str) -> Row:
    """Return the cut-off run; raises Conflict where its conversation has gone on, or somebody stopped it."""
    statement = """SELECT * FROM runs AS r WHERE id = $1 AND code = 'retryable' AND again IS NOT NULL
        AND NOT EXISTS (
            SELECT 1 FROM runs AS n WHERE n.conversation_id = r.conversation_id AND n.number > r.number)"""
    row = await tx.fetchrow(statement, run_id)
    if row is None:
        raise Conflict(f"Run {run_id} is not to be begun again.")
    return row


def _again(new: NewRun, before: Row | None) -> int | None:
    """Return how often the run may be begun again by itself: what goes on with one has what that has left."""
    if before is None or before["again"] is None:
        return new.again
    if new.begun_again is not None:
        return before["again"] - 1 or None
    return before["again"] if new.ready else new.again


def _chain(run_id: str, before: Row | None) -> Chain:
    if before is None:
        return Chain(run_id)
    spent = Amount(before["spent_tokens"], before["spent_microdollars"])
    return Chain(before["root_id"] or before["id"], before["id"], spent)


async def _take(tx: Tx, conversation_id: str, principal_id: str, now: int) -> Row:
    """Lock the conversation, end a run of it whose owner is gone, and return what a new lease tells of it."""
    statement = """UPDATE conversations SET fence = fence + 1 WHERE id = $1 AND leaving = 0
        RETURNING fence, session_id, temporary, trusted, principal_id,
            principal_id = 'operator' OR principal_lives(principal_id) AS lives,
            (SELECT max(seq) FROM outbound_messages WHERE source_id = $1) AS said_seq,
            (SELECT max(number) FROM compactions WHERE conversation_id = $1) AS compaction,
            (SELECT max(ready_at) FROM runs WHERE conversation_id = $1 AND ready_at IS NOT NULL) AS ready_at,
            EXISTS (SELECT 1 FROM approvals WHERE conversation_id = $1 AND ended_at IS NULL) AS waits,
            EXISTS (SELECT 1 FROM runs WHERE conversation_id = $1 AND state = 'running') AS running"""
    taken: Row | None = await tx.fetchrow(statement, conversation_id)
    if taken is None or taken["principal_id"] != principal_id:
        raise NoConversation(conversation_id)
    if not taken["lives"]:
        raise Suspended(taken["principal_id"])
    if taken["running"]:
        await _overtake(tx, conversation_id, now)
    return taken


async def _overtake(tx: Tx, conversation_id: str, now: int) -> None:
    """End the conversation's run if its owner is gone; raises ConversationBusy."""
    # A writer may hold the row just as its lease ends: then the conversation is busy for a moment more.
    statement = """SELECT * FROM runs WHERE conversation_id = $1 AND state = 'running'
        AND lease_until <= lease_now() FOR UPDATE SKIP LOCKED"""
    stale = await tx.fetch(statement, conversation_id)
    for row in stale:
        await cut_off_run(tx, row, now)
    running = await tx.fetchval(
        "SELECT 1 FROM runs WHERE conversation_id = $1 AND state = 'running'", conversation_id
    )
    if running is not None:
        raise ConversationBusy(conversation_id)


async def _insert(
    tx: Tx, new: NewRun, conversation_id: str, fence: int, message_id: str, chain: Chain, again: int | None
) -> None:
    await tx.execute(
        """INSERT INTO runs (id, conversation_id, state, fence, lease_owner, lease_until, message_id,
            created_at, model, root_id, previous_id, spent_tokens, spent_microdollars, principal_id, again,
            asked)
        VALUES ($1, $2, 'running', $3, $4, lease_now() + $5::bigint, $6, $7, $8, $9, $10, $11, $12, $13, $14,
            $15)""",
        new.run_id,
        conversation_id,
        fence,
        new.owner,
        new.lease_ms,
        message_id,
        new.now,
        new.model,
        chain.root_run_id,
        chain.previous_run_id,
        chain.spent.tokens,
        chain.spent.microdollars,
        new.principal_id,
        again,
        new.asked,
    )


async def _unfinished(tx: Tx, conversation_id: str) -> Row:
    """Return the run that ended without a final answer (of no id, where none is known); raises Conflict."""
    last = await tx.fetchrow(LAST_RUN, conversation_id) or await tx.fetchrow(LAST_MESSAGE, conversation_id)
    why = "nothing was said in it yet" if last is None else OVER.get(last["code"])
    if last is not None and last["state"] in (RunState.SUCCESS, "assistant"):
        why = "its last message is answered"
    if last is None or why is not None:
        said = f"Conversation {conversation_id} has nothing to go on with: {why}"
        raise Conflict(said, code="not_paused")
    return last

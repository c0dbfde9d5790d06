"""Calls that wait for a person: asked at a run's pause, decided once, gone on with by the first host.

The open requests of a conversation are one *step*: the calls of one reply that have no result yet. The last
answer marks the step's run as ready in its own transaction; any host claims it by beginning the next run.
A budget's request stands apart: nothing is held up by it.
"""

from collections.abc import Sequence
from functools import partial
from operator import itemgetter
from typing import Any, Final

from shared import jsons
from shared.approval_values import (
    DECIDED,
    ELICITATION,
    MOST_REMEMBERED,
    Answer,
    Approval,
    ApprovalStatus,
    Decision,
    Ready,
    Waiting,
)
from shared.errors import AlreadyDecided, Conflict, Expired, InvalidInput, KeyTaken, NotFound
from shared.store import rows
from shared.store.contract import Tx
from shared.store.rows import Noun, writes
from shared.store.sql import audit, lifetimes, steps
from shared.values import Idempotency, Page, RunState

OF_PRINCIPAL: Final = """($2::text IS NULL OR EXISTS (
    SELECT 1 FROM conversations AS c WHERE c.id = a.conversation_id AND c.principal_id = $2))"""
FITTING: Final[dict[str, Decision]] = {"question": "answer", "client_tool": "result"}
"""What requests of a kind are answered with, if it isn't ``allow``."""
DUE: Final = """SELECT DISTINCT conversation_id FROM approvals
    WHERE status = 'pending' AND expires_at <= wall_now() LIMIT 100"""
OF_A_COPY: Final = (
    "UPDATE approvals SET status = 'interrupted' WHERE status = 'allowed' AND ended_at IS NULL",
    "UPDATE runs SET ready_at = NULL, again = NULL WHERE ready_at IS NOT NULL OR again IS NOT NULL",
)
"""For a store that was restored or copied: what was allowed or cut off in it may have been done since."""


class Approvals(Noun):
    """Requests for a person's word, and who gave it."""

    async def get(self, approval_id: str, principal_id: str | None) -> Approval | None:
        """Return a request of the principal (None: anybody's), or None."""
        statement = f"{steps.SELECT} WHERE a.id = $1 AND {OF_PRINCIPAL}"
        return await self._one(steps.to_approval, statement, approval_id, principal_id)

    async def page(
        self,
        wanted: dict[str, str | None],
        principal_id: str | None,
        *,
        limit: int,
        cursor: str | None,
        since: int = 0,
    ) -> Page[Approval]:
        """Return requests, ``since`` an instant: those that are pending oldest first, all others newest
        first.
        """
        pending = wanted.get("status") == ApprovalStatus.PENDING
        (at,) = rows.decode_cursor(cursor, int) or [0 if pending else 2**62]
        order = ("a.number > $3", "ASC") if pending else ("a.number < $3", "DESC")
        where, values = [OF_PRINCIPAL, order[0], "a.created_at >= $4"], list[Any]([since])
        for column, value in wanted.items():
            if value is not None:
                values.append(value)
                where.append(f"a.{column} = ${len(values) + 3}")
        statement = f"{steps.SELECT} WHERE {' AND '.join(where)} ORDER BY a.number {order[1]} LIMIT $1"
        return await self._page(steps.to_approval, ("number",), statement, limit, principal_id, at, *values)

    async def open_step(self, conversation_id: str) -> list[Approval]:
        """Return the requests of the conversation's step, in the order of its calls."""
        return await self._all(
            steps.to_approval, f"{steps.SELECT} WHERE a.{steps.STEP} ORDER BY a.number", conversation_id
        )

    async def stopped(self, conversation_id: str) -> dict[str, Any]:
        """Return how far the subagents of the conversation's step came, by the call that began each."""
        statement = "SELECT call_id, state FROM stopped_subagents WHERE conversation_id = $1"
        found = await self._engine.read(lambda tx: tx.fetch(statement, conversation_id))
        return {row["call_id"]: jsons.loads(row["state"]) for row in found}

    async def open_of(self, principal_id: str) -> int:
        """Return how many requests of a principal wait."""
        statement = """SELECT count(*) FROM approvals AS a JOIN conversations AS c
            ON c.id = a.conversation_id WHERE a.status = 'pending' AND c.principal_id = $1"""
        return int(await self._value(statement, principal_id))

    async def waiting(self, now: int) -> Waiting:
        """Return how much waits for people, and of active principals for hosts after they answered."""
        statement = """SELECT count(*) AS requests, coalesce($1::bigint - min(created_at), 0) AS oldest_ms,
            (SELECT coalesce($1::bigint - min(ready_at), 0) FROM runs JOIN principals AS p
                ON p.id = principal_id WHERE ready_at > 0 AND p.status || '' = 'active') AS ready_ms
            FROM approvals WHERE status = 'pending'"""
        (found,) = await self._all(rows.reader(Waiting), statement, now)
        return found

    async def pending(self, conversation_ids: Sequence[str]) -> dict[str, int]:
        """Return how many requests of each conversation wait; those with none are left out."""
        statement = """SELECT conversation_id, count(*) AS number FROM approvals WHERE ended_at IS NULL
            AND status = 'pending' AND conversation_id = ANY($1::text[]) GROUP BY conversation_id"""
        return dict(await self._all(itemgetter("conversation_id", "number"), statement, [*conversation_ids]))

    async def remembered(self, conversation_id: str) -> list[Approval]:
        """Return the calls that need no question in this conversation any more."""
        statement = f"{steps.SELECT} WHERE a.conversation_id = $1 AND a.remembered = 1 ORDER BY a.number"
        return await self._all(steps.to_approval, statement, conversation_id)

    async def forget(self, conversation_id: str) -> int:
        """Ask about them again; returns how many they were."""
        statement = "UPDATE approvals SET remembered = 0 WHERE conversation_id = $1 AND remembered = 1"
        return await self._change(statement, conversation_id)

    @writes()
    async def decide(
        self,
        tx: Tx,
        approval_id: str,
        principal_id: str | None,
        answer: Answer,
        now: int,
        key: Idempotency | None = None,
    ) -> Approval:
        """Write a person's answer; the last one of a step makes it ready.

        Raises NotFound, AlreadyDecided, Conflict ``changed`` (the person saw another call), Expired,
        KeyTaken (the same answer was given with the ``key`` before).
        """
        if key is not None and (kept := await lifetimes.keyed_alone(tx, key, now)) is not None:
            raise KeyTaken(kept)
        approval = await _locked(tx, approval_id, principal_id)
        _check(approval, answer)
        changed = await tx.execute(
            """UPDATE approvals SET status = $2, decided_at = $3::bigint, decided_by = $4, message = $5,
            remembered = $6, is_error = $7, ended_at = CASE WHEN kind = 'budget' THEN $3::bigint END
            WHERE id = $1 AND status = 'pending' AND (expires_at IS NULL OR expires_at > wall_now())""",
            approval_id,
            _becomes(approval, answer),
            now,
            jsons.dumps(answer.by),
            answer.message,
            int(answer.remember),
            int(answer.is_error),
        )
        if not changed:
            raise Expired(f"The request {approval_id} has expired; nobody answered in time.")
        if answer.remember:
            await _check_remembered(tx, approval.conversation_id)
        await _go_on(tx, approval, answer, now)
        if key is not None:
            await lifetimes.keep_key(tx, key, approval_id, None, now)
        row = rows.there(await tx.fetchrow(f"{steps.SELECT} WHERE a.id = $1", approval_id))
        whose = await tx.fetchval(steps.LOCK, approval.conversation_id)
        await audit.note(tx, f"approval.{row['status']}", whose, approval_id, answer.by)
        if answer.allow_tokens is not None:
            await audit.note(tx, "budget.lifted", whose, approval.conversation_id, answer.by)
        return steps.to_approval(row)

    async def ready(self, limit: int) -> list[Ready]:
        """Return steps of active principals that can go on, by turns of each, its longest waiting first."""
        # By the runs that wait, not by each principal's conversations: this is asked every second.
        statement = """SELECT r.conversation_id, nullif(c.owner_id, c.id) AS parent_id, c.principal_id
            FROM runs AS r JOIN conversations AS c ON c.id = r.conversation_id
            JOIN principals AS p ON p.id = c.principal_id
            WHERE r.ready_at > 0 AND p.status || '' = 'active' ORDER BY
            row_number() OVER (PARTITION BY p.id ORDER BY r.ready_at), r.ready_at LIMIT $1"""
        return await self._all(rows.reader(Ready), statement, limit)

    async def of_pause(self, run_id: str) -> list[Approval] | None:
        """Return the calls and questions with which a run paused; None: it has not ended yet."""
        state = "SELECT state FROM runs WHERE id = $1"
        if await self._value(state, run_id) == RunState.RUNNING:
            return None
        whose = "a.conversation_id = (SELECT conversation_id FROM runs WHERE id = $1) AND a.run_id = $1"
        statement = f"{steps.SELECT} WHERE {whose} AND a.kind IN ('approval', 'question') ORDER BY a.number"
        return await self._all(steps.to_approval, statement, run_id)

    async def shown_and_decided(self) -> list[Approval]:
        """Return decided requests that messages of chats still have buttons for."""
        where = "a.shown IS NOT NULL AND a.status <> 'pending'"
        return await self._all(steps.to_approval, f"{steps.SELECT} WHERE {where} ORDER BY a.number LIMIT 100")

    @writes(patient=True)
    async def show(self, tx: Tx, approval_id: str, place: Sequence[str], *, ends: bool = False) -> None:
        """Note that a message of a chat has buttons for a request, or (``ends``) that it hasn't any more."""
        select = "SELECT shown FROM approvals WHERE id = $1 FOR UPDATE"
        others = jsons.loads(await tx.fetchval(select, approval_id) or "[]")
        places = [each for each in others if each != list(place)] + ([] if ends else [place])
        update = "UPDATE approvals SET shown = $2 WHERE id = $1"
        await tx.execute(update, approval_id, jsons.dumps(places) if places else None)

    async def expire(self, now: int) -> int:
        """End the steps of which a request has expired; returns how many."""
        due = await self._engine.read(lambda tx: tx.fetch(DUE))
        for row in due:
            await self._engine.write(
                partial(steps.expire_step, conversation_id=row["conversation_id"], now=now)
            )
        return len(due)

    @writes()
    async def drop(self, tx: Tx, conversation_id: str, now: int, run_id: str | None = None) -> str | None:
        """Cancel a run that waits (if it is this one); returns its id, None where none waits.

        A step that a run is at is that run's.
        """
        await tx.fetchrow(steps.LOCK, conversation_id)
        waits = f"""SELECT 1 FROM runs
            WHERE id = {steps.LAST_RUN} AND state <> 'running' AND coalesce($2, id) = id"""
        if await tx.fetchval(waits, conversation_id, run_id) is None:
            return None
        if not await steps.settle(tx, conversation_id, None, ApprovalStatus.DROPPED, now):
            return None
        return await steps.end_run(tx, conversation_id, "cancelled", steps.CANCELLED, now, state="cancelled")


async def _locked(tx: Tx, approval_id: str, principal_id: str | None) -> Approval:
    conversation_id = await tx.fetchval("SELECT conversation_id FROM approvals WHERE id = $1", approval_id)
    whose = await tx.fetchval(steps.LOCK, conversation_id or "")
    row = await tx.fetchrow(f"{steps.SELECT} WHERE a.id = $1", approval_id)
    if row is None or whose is None or principal_id not in (None, whose):
        raise NotFound(f"approval not found: {approval_id}")
    return steps.to_approval(row)


def _check(approval: Approval, answer: Answer) -> None:
    """Raise AlreadyDecided, InvalidInput or Conflict ``changed`` for an answer that doesn't fit."""
    if approval.status is not ApprovalStatus.PENDING:
        if approval.status is ApprovalStatus.EXPIRED:
            raise Expired(f"The request {approval.id} has expired; nobody answered in time.")
        raise AlreadyDecided(approval.id, approval.status)
    fitting = FITTING.get(approval.kind, "allow")
    if answer.decision not in (fitting, "deny"):
        raise InvalidInput(f"decision: must be {fitting} or deny for a request of kind {approval.kind}")
    _check_seen(approval, answer)
    if answer.remember and approval.kind != "approval":
        raise InvalidInput("remember: is for allowing a call")
    if answer.allow_tokens is not None and (approval.kind, answer.decision) != ("budget", "allow"):
        raise InvalidInput("allow_tokens: is for allowing a request of kind budget")


def _check_seen(approval: Approval, answer: Answer) -> None:
    """Raise InvalidInput or Conflict ``changed`` for an answer to another call than the one that waits."""
    needed = approval.kind != "budget" and answer.decision in ("allow", "answer")
    if answer.input_sha256 != approval.input_sha256 and (needed or answer.input_sha256 is not None):
        if answer.input_sha256 is None:
            raise InvalidInput("input_sha256: is required, as the request has it")
        raise Conflict("input_sha256: is not that of the request; read it again", code="changed")


def _becomes(approval: Approval, answer: Answer) -> ApprovalStatus:
    if approval.reason == ELICITATION and answer.decision == "answer":
        return ApprovalStatus.ALLOWED
    return DECIDED[answer.decision]


async def _go_on(tx: Tx, approval: Approval, answer: Answer, now: int) -> None:
    """Make the step ready when its last request was answered."""
    conversation_id = approval.conversation_id
    if approval.kind == "budget":
        if answer.decision == "allow":
            await _allow_tokens(tx, approval.run_id, answer.allow_tokens, now)
        return
    if await tx.fetchval(f"SELECT 1 FROM approvals WHERE {steps.PENDING} LIMIT 1", conversation_id) is None:
        await tx.execute(f"UPDATE runs SET ready_at = $2 WHERE id = {steps.LAST_RUN}", conversation_id, now)


async def _allow_tokens(tx: Tx, run_id: str, tokens: int | None, now: int) -> None:
    asked = jsons.loads(await tx.fetchval("SELECT asked FROM runs WHERE id = $1", run_id) or "{}")
    changed = jsons.dumps({**asked, "allow_tokens": tokens})
    await tx.execute("UPDATE runs SET asked = $2, ready_at = $3 WHERE id = $1", run_id, changed, now)


async def _check_remembered(tx: Tx, conversation_id: str) -> None:
    statement = "SELECT count(*) FROM approvals WHERE conversation_id = $1 AND remembered = 1"
    if await tx.fetchval(statement, conversation_id) > MOST_REMEMBERED:
        raise Conflict(
            f"remember: this conversation remembers {MOST_REMEMBERED} calls already; "
            f"DELETE /chat/{conversation_id}/remembered forgets them"
        )

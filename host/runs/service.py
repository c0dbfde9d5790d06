"""All runs of this host: starting, joining, cancelling, keeping their leases, draining."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import Final, cast

import anyio

from host.agent.endings import Cancelled, Ending, Stopped
from host.ports import SandboxFault
from host.runs.admission import Places, RateLimit, Share
from host.runs.assembly import Assembly
from host.runs.events import EVENTS_EVERY_S, follow, replayed
from host.runs.leases import CANCELLED, KEY_GONE, Background, Keeping, Waiters
from host.runs.meter import Ledger
from host.runs.principals import THE_OPERATOR, PrincipalCache
from host.runs.prompt import new_run
from host.runs.run import ActiveRun
from host.runs.spec import ChatShape, RunLimits, RunSpec
from shared.approval_values import Ready
from shared.clock import now_ms
from shared.errors import (
    ConversationBusy,
    Draining,
    KeyTaken,
    NoConversation,
    NotDurable,
    NotFound,
    NotRunning,
    PicoError,
    Unavailable,
)
from shared.principals import OPERATOR, Principal
from shared.values import Event, KeyedAnswer, Run

MOST_FORGOTTEN: Final = 200
"""Deleted conversations whose files are removed in one round."""
DELETE_AGAIN_S: Final = (0.05, 0.5, 2.0)
"""Pauses between tries to delete from a disk that is about to be freed, in seconds."""

logger = logging.getLogger("picoclaw.runs")


class RunService:
    """Owns every run of this host. Enter it before the first request, leave it after the last."""

    def __init__(
        self, ledger: Ledger, agent: Assembly, limits: RunLimits, principals: PrincipalCache
    ) -> None:
        self.limits = limits
        self.principals = principals
        self._ledger = ledger
        self._store = ledger.store
        self._agent = agent
        self._converse = partial(agent.converse, approve=self.approve)
        self._active: dict[str, ActiveRun] = {}
        self._places = Places(limits.max_concurrent_runs, limits.queue_ms)
        self._rate = RateLimit(limits.messages_per_minute)
        self._stack = AsyncExitStack()
        self._runs: asyncio.TaskGroup
        self._idle = asyncio.Event()
        self.waiters = Waiters(self._store, self._active)
        self.background = Background(self._store, self.start)
        self.draining = False

    async def __aenter__(self) -> RunService:
        tasks = await self._stack.enter_async_context(anyio.create_task_group())
        self._stack.callback(tasks.cancel_scope.cancel)
        # anyio's makes twenty objects more for each task, which no run has a use for.
        self._runs = await self._stack.enter_async_context(asyncio.TaskGroup())
        self._stack.push_async_callback(self.drain)
        keeping = Keeping(self._store, self._active, self.limits.owner, self.limits.lease_ms)
        tasks.start_soon(keeping.events)
        tasks.start_soon(keeping.leases)
        tasks.start_soon(keeping.cancels)
        tasks.start_soon(keeping.steps, self.go_on, lambda: self._places.free)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    @property
    def active_count(self) -> int:
        """How many runs are in flight."""
        return len(self._active)

    @property
    def waiting_count(self) -> int:
        """How many requests wait for a place."""
        return self._places.waiting

    @property
    def full(self) -> tuple[str, ...]:
        """The principals that have all runs at once that they may have on this host."""
        return tuple(self._places.full)

    def depth_in(self, conversation_id: str) -> int:
        """Return how many agents have asked each other up to the conversation's run here; 0 without one."""
        runs = (run for run in self._active.values() if run.lease.conversation_id == conversation_id)
        return max((run.spec.depth for run in runs), default=0)

    async def start(self, spec: RunSpec) -> ActiveRun:
        """Begin a run; it goes on whether or not the caller stays.

        Raises Draining, AtCapacity, TooManyRequests, NotDurable, NotFound, ConversationBusy, KeyTaken,
        Conflict, InvalidInput, Suspended: then nothing was stored.
        """
        principal = THE_OPERATOR
        if spec.principal_id != OPERATOR:
            principal = await self.principals.active(spec.principal_id)
        terms = principal.terms
        if spec.model is not None or spec.output_schema is not None or terms.models is not None:
            await self._agent.check(spec, principal)
        if spec.waited_for:
            self._count(spec.sender, principal)
        share = Share((principal.id, spec.sender, spec.conversation_id), terms.concurrent_runs)
        if not self._places.take_now(share):
            self._check_open()
            await self._refuse_early(spec)
            if not spec.waited_for:
                # A slot is claimed already and claims run out: a task comes again with the next check.
                raise self._places.at_capacity(share)
            await self._places.take(share)
        try:
            self._check_open()
            return await self._begin(spec, principal, share)
        except BaseException:
            self._places.give_back(share)
            raise

    def _count(self, sender: str, principal: Principal) -> None:
        """Count a message; raises TooManyRequests."""
        if principal.terms.rate_limits is not None:
            most = principal.terms.rate_limits.get("messages_per_minute") or 0
            self._rate.spend(principal.id, f"This principal's messages_per_minute are {most}.", most)
        self._rate.spend((principal.id, sender), "Too many messages from this sender in a minute.")

    async def _begin(self, spec: RunSpec, principal: Principal, share: Share) -> ActiveRun:
        new = new_run(spec, principal, self.limits, self._ledger.redactor)
        lease = await self._store.runs.begin(new)
        if lease.asked is not None:
            spec = spec.continuing(lease.asked, self.limits.seal)
        run = ActiveRun(self._ledger, self._converse, spec, lease, self.limits, principal)
        # Its lease is renewed from now on: to place what came with the message may take longer than one.
        self._active[lease.run_id] = run
        if spec.attached is not None:
            try:
                # A caller who leaves must not leave a lease behind that nobody serves.
                with anyio.CancelScope(shield=True):
                    await spec.attached.place(lease)
            except PicoError as error:
                run.stop(Ending(f"An attachment could not be stored: {error.message}", code=error.code))
            except BaseException:
                del self._active[lease.run_id]
                raise
        self._runs.create_task(self._execute(run, share))
        return run

    async def joined(self, answer: KeyedAnswer) -> ChatShape:
        """Return the answer of the run that an idempotency key stands for, waiting for it if need be."""
        run = self._active.get(answer.subject)
        if run is not None:
            return await run.wait()
        while True:
            stored = await self._store.runs.get(answer.conversation_id or "", answer.subject)
            if stored is None:
                raise NotFound(KEY_GONE)
            if stored.answer is not None:
                answered = cast(ChatShape, stored.answer)
                if stored.next_run_id is not None:
                    answered["next_run_id"] = stored.next_run_id
                return answered
            # It runs on another host.
            await anyio.sleep(EVENTS_EVERY_S)

    async def approve(self, conversation_id: str, allow_tokens: int) -> str:
        """Let a conversation go on with so many tokens; returns the new run's id. Raises as ``start``."""
        found = await self._store.conversations.get(conversation_id)
        conversation = NoConversation.unless(found, conversation_id)
        spec = RunSpec(
            None,
            conversation_id,
            parent_id=conversation.parent_id,
            allow_tokens=allow_tokens,
            principal_id=conversation.principal_id,
        )
        return (await self.start(spec)).lease.run_id

    async def cancel(self, conversation_id: str, run_id: str | None = None) -> str:
        """Stop the conversation's run, or this one, on whichever host it is; returns its id.

        One that was cut off is not begun again. Raises NotRunning.
        """
        for run in self._active.values():
            if run.lease.conversation_id == conversation_id and run_id in (None, run.lease.run_id):
                run.stop(Cancelled(CANCELLED))
                return run.lease.run_id
        asked = await self._store.runs.ask_cancel(conversation_id, run_id)
        asked = asked or await self._store.approvals.drop(conversation_id, now_ms(), run_id)
        # What waited may have begun to go on meanwhile, here or elsewhere.
        asked = asked or await self._store.runs.ask_cancel(conversation_id, run_id)
        if asked is not None:
            return asked
        what = f"Conversation {conversation_id}" if run_id is None else f"Run {run_id}"
        raise NotRunning(f"{what} is not processing a request")

    async def go_on(self, step: Ready) -> str | None:
        """Begin the run that a step is ready for; None if it can't begin yet, or another host was first."""
        spec = RunSpec(
            None,
            step.conversation_id,
            parent_id=step.parent_id,
            principal_id=step.principal_id,
            ready=True,
        )
        try:
            return (await self.start(spec)).lease.run_id
        except PicoError:
            return None

    async def delete_conversation(self, conversation_id: str) -> None:
        """Delete a conversation durably. Files that can't be reached now go once they can be.

        Raises NotFound, ConversationBusy, NotDurable.
        """
        try:
            principal_id = await self._store.conversations.delete(conversation_id)
        except NotDurable:
            principal_id = await self._delete_from_full_disk(conversation_id)
        await self._store.durable()
        with suppress(Unavailable, SandboxFault):
            await self._forget(conversation_id, principal_id)

    async def forget_deleted(self) -> None:
        """Drop what deleted conversations still have beside their rows; raises SandboxFault."""
        fault: SandboxFault | None = None
        for conversation_id, principal_id in await self._store.conversations.gone(MOST_FORGOTTEN):
            try:
                await self._forget(conversation_id, principal_id)
            except SandboxFault as error:
                fault = error  # the next one may lie elsewhere
        if fault is not None:
            raise fault

    async def _forget(self, conversation_id: str, principal_id: str) -> None:
        await self._agent.forget(conversation_id, principal_id)
        await self._store.conversations.forget(conversation_id)

    async def _delete_from_full_disk(self, conversation_id: str) -> str:
        """Delete a conversation after all that its deletion would free anyhow. Raises NotDurable."""
        await self._agent.release(conversation_id)
        self._store.make_room()
        for pause in DELETE_AGAIN_S:
            with suppress(NotDurable):
                return await self._store.conversations.delete(conversation_id)
            await anyio.sleep(pause)
        return await self._store.conversations.delete(conversation_id)

    async def event_batches(
        self,
        conversation_id: str,
        run_id: str,
        *,
        after: int,
        run: ActiveRun | None = None,
        keyed: bool = False,
    ) -> AsyncIterator[Sequence[Event]]:
        """Return the run's events after ``after``: live, stored, or stored and then live.

        ``run`` is the run itself when the caller has just started it; ``keyed``: an idempotency key names
        it. Raises NotFound.
        """
        run = run or self._active.get(run_id)

        def read(seq: int) -> Awaitable[Sequence[Event]]:
            return self._store.runs.events(run_id, after=seq)

        if run is not None and run.lease.conversation_id == conversation_id:
            return follow(run.log, after, read)

        async def look() -> Run:
            stored = await self._store.runs.get(conversation_id, run_id)
            return NotFound.unless(stored, KEY_GONE if keyed else f"run_id not found: {run_id}")

        return replayed(await look(), after, read, look)

    async def drain(self) -> None:
        """Start nothing more; give the runs their grace, then stop them with their progress stored."""
        self.draining = True
        self._places.close()
        self.waiters.close()
        with anyio.move_on_after(self.limits.stop_grace_ms / 1000):
            await self._until_idle()
        for run in list(self._active.values()):
            run.stop(Stopped("The host is stopping; the finished steps of this run are kept."))
        await self._until_idle()

    async def _execute(self, run: ActiveRun, share: Share) -> None:
        try:
            await run.execute()
        finally:
            del self._active[run.lease.run_id]
            self._places.give_back(share)
            self._idle.set()

    async def _until_idle(self) -> None:
        while self._active:
            self._idle.clear()
            await self._idle.wait()

    async def _refuse_early(self, spec: RunSpec) -> None:
        """Refuse what would be refused anyway before it waits for a place: unknown, busy, in progress."""
        kept = await self._store.runs.keyed(spec.idempotency, now_ms()) if spec.idempotency else None
        if kept is not None and (spec.background or kept.subject in self._active):
            raise KeyTaken(kept)
        conversation_id = spec.conversation_id
        if conversation_id is None:
            return
        if await self._store.conversations.get(conversation_id) is None:
            raise NoConversation(conversation_id)
        if any(run.lease.conversation_id == conversation_id for run in self._active.values()):
            raise ConversationBusy(conversation_id)

    def _check_open(self) -> None:
        if self.draining:
            raise Draining("The host is stopping.", retry_after=5)
        if not self._store.volume_ok():
            what = "database cannot be reached" if self._store.several_hosts else "volume cannot be written"
            raise NotDurable(f"The store's {what}.", retry_after=5)

"""Beside the runs of a host: events are stored, leases renewed, cut-off runs begun again, ends awaited."""

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Final

import anyio
import anyio.lowlevel

from host.agent.endings import Cancelled, Overtaken
from host.runs.events import EVENTS_EVERY_S
from host.runs.run import ActiveRun
from host.runs.spec import BegunShape, RunSpec
from shared.approval_values import Ready
from shared.clock import now_ms
from shared.errors import ConversationBusy, NotFound, PicoError, Unavailable
from shared.logging import Rounds
from shared.store.store import Store
from shared.values import KeyedAnswer, Run, RunState

logger = logging.getLogger("picoclaw.runs")

READY_EVERY_S: Final = 1.0
"""How often a host looks for steps that people have answered, in seconds."""

READY_AT_ONCE: Final = 100
"""How many such steps one look sees: one that can't go on yet holds up no other."""

RUNS_AT_ONCE: Final = 50
"""How many runs' events or leases are written in one transaction, which the event loop waits for."""


CANCELLED: Final = "The run was cancelled; its finished steps are kept."


class Keeping:
    """Endless tasks over ``active``, the runs by their ids."""

    def __init__(self, store: Store, active: Mapping[str, ActiveRun], owner: str, lease_ms: int) -> None:
        self._store = store
        self._active = active
        self._owner = owner
        self._lease_ms = lease_ms

    async def events(self) -> None:
        """Store what the runs told, a few times a second."""
        rounds = Rounds(logger, "Events could not be stored")
        while True:
            await anyio.sleep(EVENTS_EVERY_S)
            runs = [run for run in self._active.values() if not run.log.closed and not run.log.held]
            with rounds:
                for start in range(0, len(runs), RUNS_AT_ONCE):
                    await self._store_events(runs[start : start + RUNS_AT_ONCE])
                    await anyio.lowlevel.checkpoint()

    async def _store_events(self, some: Sequence[ActiveRun]) -> None:
        runs = {run.lease.run_id: run for run in some if not run.log.closed}
        unsaved = {run_id: run.log.unsaved() for run_id, run in runs.items()}
        lost = await self._store.runs.record(
            [(runs[run_id].lease, events) for run_id, events in unsaved.items() if events], now_ms()
        )
        for run_id, events in unsaved.items():
            if run_id in lost:
                runs[run_id].stop(Overtaken())
            else:
                runs[run_id].log.mark_saved(events)

    async def leases(self) -> None:
        """Renew the leases of all runs, three times in the time of one."""
        rounds = Rounds(logger, "Leases could not be renewed")
        while True:
            await anyio.sleep(self._lease_ms / 3000)
            runs = list(self._active.values())
            with rounds:
                for start in range(0, len(runs), RUNS_AT_ONCE):
                    await self._renew(runs[start : start + RUNS_AT_ONCE])
                    await anyio.lowlevel.checkpoint()

    async def cancels(self) -> None:
        """Stop the runs of this host that somebody asked another process to stop."""
        rounds = Rounds(logger, "Cancelled runs could not be looked for")
        while True:
            await anyio.sleep(EVENTS_EVERY_S)
            with rounds:
                for run_id in await self._store.runs.cancels_asked(self._owner) if self._active else ():
                    if run_id in self._active:
                        self._active[run_id].stop(Cancelled(CANCELLED))

    async def steps(self, go_on: Callable[[Ready], Awaitable[object]], free: Callable[[], int]) -> None:
        """Go on where people have answered, here or at another host; end what nobody answered in time."""
        rounds = Rounds(logger, "Steps that can go on could not be looked for")
        while True:
            await anyio.sleep(READY_EVERY_S)
            with rounds:
                await self._store.approvals.expire(now_ms())
                for step in await self._store.approvals.ready(READY_AT_ONCE):
                    if free():
                        await go_on(step)

    async def _renew(self, runs: Sequence[ActiveRun]) -> None:
        lost = await self._store.runs.renew([run.lease for run in runs], self._lease_ms)
        for run in runs:
            if run.lease.run_id in lost:
                run.stop(Overtaken())


KEY_GONE: Final = "Idempotency-Key: its run is over and was not kept; use a new key for a new request"
MOST_AT_ONCE: Final = 1000
"""Cut-off runs that one round looks at, oldest first."""


class Background:
    """What is told of a background run's beginning, and how it begins again where its host stopped."""

    def __init__(self, store: Store, start: Callable[[RunSpec], Awaitable[ActiveRun]]) -> None:
        self._store = store
        self._start = start

    async def begun(self, run: ActiveRun) -> BegunShape:
        """Return that a run has begun, once that is durable; raises what kept it from that."""
        lease = run.lease
        try:
            await run.acknowledged()
        except PicoError:
            # Its caller is told that there is no such run.
            with suppress(PicoError):
                await self._store.runs.leave(lease.run_id)
            raise
        return _begun(lease.conversation_id, lease.message_id, lease.run_id)

    async def begun_before(self, answer: KeyedAnswer) -> BegunShape:
        """Return what was answered when the run of an idempotency key began; raises NotFound."""
        stored = await self._store.runs.get(answer.conversation_id or "", answer.subject)
        if stored is None:
            raise NotFound(KEY_GONE)
        await self._store.durable()
        return _begun(stored.conversation_id, stored.message_id, stored.id)

    async def begin_again(self) -> None:
        """Begin the runs again that were cut off: those that there is a place for."""
        for cut_off in await self._store.runs.to_begin_again(MOST_AT_ONCE):
            spec = RunSpec(
                None,
                cut_off.conversation_id,
                principal_id=cut_off.principal_id,
                background=True,
                begun_again=cut_off.id,
            )
            try:
                await self._start(spec)
            except (Unavailable, ConversationBusy):
                continue  # the next round tries again
            except PicoError as error:
                logger.warning("Not begun again: %s", error.message, extra={"run_id": cut_off.id})
                await self._store.runs.leave(cut_off.id)


def _begun(conversation_id: str, message_id: str, run_id: str) -> BegunShape:
    return {
        "conversation_id": conversation_id,
        "message_id": message_id,
        "run_id": run_id,
        "status": "running",
    }


MOST_WAITERS: Final = 256
MOST_WAITERS_OF_PRINCIPAL: Final = 16
SELDOM_S: Final = 2.0
"""The longest pause between two looks at a run of another host."""


Meanwhile = Callable[[Run], Awaitable[None]]
"""Called every few seconds while a run goes on."""


class Waiters:
    """Requests that wait for the end of a run, or of those that continue it, on whichever host they are.

    So many of a host, and so many of each principal; one more is answered at once.
    """

    def __init__(self, store: Store, active: Mapping[str, ActiveRun]) -> None:
        self._store = store
        self._active = active
        self._waiting: dict[anyio.CancelScope, str] = {}
        self._closed = False

    def close(self) -> None:
        """Answer all who wait, and whoever comes, with the state so far."""
        self._closed = True
        for scope in self._waiting:
            scope.cancel()

    async def wait(
        self, run: Run, wait_ms: int, *, chain: bool, principal_id: str, meanwhile: Meanwhile | None = None
    ) -> Run:
        """Return the run, or the last one of its chain, once it has ended or so many milliseconds later.

        With ``chain`` one that is to be begun again runs: it has no end yet.
        """
        own = list(self._waiting.values()).count(principal_id)
        if self._closed or len(self._waiting) >= MOST_WAITERS or own >= MOST_WAITERS_OF_PRINCIPAL:
            wait_ms = 0
        with anyio.move_on_after(wait_ms / 1000) as scope:
            self._waiting[scope] = principal_id
            try:
                await self._end(run, chain, meanwhile)
            finally:
                del self._waiting[scope]
        newest = await self._newest(run, chain)
        return unended(newest) if chain else newest

    async def _end(self, run: Run, chain: bool, meanwhile: Meanwhile | None) -> None:
        pause = EVENTS_EVERY_S
        while _goes_on(run := await self._newest(run, chain), chain):
            active = self._active.get(run.id)
            with anyio.move_on_after(SELDOM_S):
                await (anyio.sleep(pause) if active is None else active.ended.wait())
            pause = min(pause * 1.5, SELDOM_S)
            if meanwhile is not None:
                await meanwhile(run)

    async def _newest(self, run: Run, chain: bool) -> Run:
        """Return the run as it is now (as it was, where it was deleted), or the last one of its chain."""
        now = await self._store.runs.find(run.id, None) or run
        return (await self.chain(now))[-1] if chain else now

    async def chain(self, run: Run) -> list[Run]:
        """Return the run and those that go on for it, as far as they are there."""
        found = [run]
        while (following := found[-1].next_run_id) is not None:
            if (goes_on := await self._store.runs.find(following, None)) is None:
                found[-1] = replace(found[-1], next_run_id=None)
            else:
                found.append(goes_on)
        return found


def unended(run: Run) -> Run:
    """Return a run as it stands in its chain: what is to be begun again runs."""
    if not run.waits:
        return run
    return replace(run, state=RunState.RUNNING, finished_at=None, error=None, code=None, answer=None)


def _goes_on(run: Run, chain: bool) -> bool:
    if not chain:
        return run.state is RunState.RUNNING
    return run.waits or run.state in (RunState.RUNNING, RunState.PAUSED)

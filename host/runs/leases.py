"""What goes on beside the runs of a host: their events are stored, their leases renewed, cancels heard of."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

import anyio
import anyio.lowlevel

from host.agent.endings import Cancelled, Overtaken
from host.runs.events import EVENTS_EVERY_S
from host.runs.run import ActiveRun
from shared.approval_values import Ready
from shared.clock import now_ms
from shared.errors import PicoError
from shared.store.store import Store

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
        while True:
            await anyio.sleep(EVENTS_EVERY_S)
            runs = [run for run in self._active.values() if not run.log.closed and not run.log.held]
            for start in range(0, len(runs), RUNS_AT_ONCE):
                await self._store_events(runs[start : start + RUNS_AT_ONCE])
                await anyio.lowlevel.checkpoint()

    async def _store_events(self, some: Sequence[ActiveRun]) -> None:
        runs = {run.lease.run_id: run for run in some if not run.log.closed}
        unsaved = {run_id: run.log.unsaved() for run_id, run in runs.items()}
        try:
            lost = await self._store.runs.record(
                [(runs[run_id].lease, events) for run_id, events in unsaved.items() if events], now_ms()
            )
        except Exception:
            logger.exception("Events could not be stored yet", extra={"runs": len(unsaved)})
            return
        for run_id, events in unsaved.items():
            if run_id in lost:
                runs[run_id].stop(Overtaken())
            else:
                runs[run_id].log.mark_saved(events)

    async def leases(self) -> None:
        """Renew the leases of all runs, three times in the time of one."""
        while True:
            await anyio.sleep(self._lease_ms / 3000)
            runs = list(self._active.values())
            for start in range(0, len(runs), RUNS_AT_ONCE):
                await self._renew(runs[start : start + RUNS_AT_ONCE])
                await anyio.lowlevel.checkpoint()

    async def cancels(self) -> None:
        """Stop the runs of this host that somebody asked another process to stop."""
        while True:
            await anyio.sleep(EVENTS_EVERY_S)
            if not self._active:
                continue
            try:
                asked = await self._store.runs.cancels_asked(self._owner)
            except PicoError:
                continue
            except Exception:
                logger.exception("Cancelled runs could not be looked for")
                continue
            for run_id in asked:
                if run_id in self._active:
                    self._active[run_id].stop(Cancelled(CANCELLED))

    async def steps(self, go_on: Callable[[Ready], Awaitable[object]], free: Callable[[], int]) -> None:
        """Go on where people have answered, here or at another host; end what nobody answered in time."""
        while True:
            await anyio.sleep(READY_EVERY_S)
            try:
                await self._store.approvals.expire(now_ms())
                for step in await self._store.approvals.ready(READY_AT_ONCE):
                    if free():
                        await go_on(step)
            except PicoError:
                continue
            except Exception:
                logger.exception("Steps that can go on could not be looked for")

    async def _renew(self, runs: Sequence[ActiveRun]) -> None:
        try:
            lost = await self._store.runs.renew([run.lease for run in runs], self._lease_ms)
        except Exception:
            logger.exception("Leases could not be renewed yet", extra={"runs": len(runs)})
            return
        for run in runs:
            if run.lease.run_id in lost:
                run.stop(Overtaken())

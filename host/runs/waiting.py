"""Requests that wait for the end of a run, or of the runs that continue it, on whichever host they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import anyio

from host.runs.events import EVENTS_EVERY_S
from host.runs.run import ActiveRun
from shared.store.store import Store
from shared.values import Run, RunState

MOST: Final = 256
MOST_OF_PRINCIPAL: Final = 16
SELDOM_S: Final = 2.0
"""The longest pause between two looks at a run of another host."""


class Waiters:
    """So many of a host, and so many of each principal; one more is answered at once."""

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

    async def wait(self, run: Run, wait_ms: int, *, chain: bool, principal_id: str) -> Run:
        """Return the run, or the last one of its chain, once it has ended or so many milliseconds later."""
        own = list(self._waiting.values()).count(principal_id)
        if self._closed or len(self._waiting) >= MOST or own >= MOST_OF_PRINCIPAL:
            wait_ms = 0
        with anyio.move_on_after(wait_ms / 1000) as scope:
            self._waiting[scope] = principal_id
            try:
                await self._end(run, chain)
            finally:
                del self._waiting[scope]
        return await self._newest(run, chain)

    async def _end(self, run: Run, chain: bool) -> None:
        pause = EVENTS_EVERY_S
        while _goes_on(run := await self._newest(run, chain), chain):
            active = self._active.get(run.id)
            if active is not None:
                await active.ended.wait()
                continue
            await anyio.sleep(pause)
            pause = min(pause * 1.5, SELDOM_S)

    async def _newest(self, run: Run, chain: bool) -> Run:
        """Return the run as it is now (as it was, where it was deleted), or the last one of its chain."""
        now = await self._store.runs.find(run.id, None) or run
        while chain and now.next_run_id is not None:
            now = await self._store.runs.find(now.next_run_id, None) or replace(now, next_run_id=None)
        return now


def _goes_on(run: Run, chain: bool) -> bool:
    if not chain:
        return run.state is RunState.RUNNING
    return run.waits or run.state in (RunState.RUNNING, RunState.PAUSED)

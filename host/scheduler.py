"""Ticking inside the host (SCHEDULER=internal): due tasks run without anybody calling POST /task/check.

The database says when the next slot is; the scheduler sleeps until then. Several hosts may tick at once:
claims in the store keep each slot to one run.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final

import anyio
from anyio.abc import TaskGroup

from shared.clock import now_ms
from shared.errors import PicoError
from shared.store.contract import Store

logger = logging.getLogger(__name__)

RunDue = Callable[[], Awaitable[int | None]]
"""Claims and runs one due slot to its end; returns how many ran (0 or None: nothing could run)."""

SHORTEST_S: Final = 1.0
"""The shortest sleep while something is due that can't run yet, in seconds."""

LONGEST_S: Final = 60.0
"""The longest sleep, in seconds: how late a change of the wall clock or a dead host's claim is noticed."""


class Scheduler:
    """Runs due tasks, at most ``most`` at once, until it is cancelled; a failure never ends it."""

    def __init__(
        self,
        store: Store,
        run_due: RunDue,
        *,
        most: int,
        now: Callable[[], int] = now_ms,
        shortest_s: float = SHORTEST_S,
        longest_s: float = LONGEST_S,
    ) -> None:
        self._store = store
        self._run_due = run_due
        self._most = most
        self._now = now
        self._shortest_s = shortest_s
        self._longest_s = longest_s
        self._serving = 0
        self._failures = 0
        self._woken = anyio.Event()

    def wake(self) -> None:
        """Look again now: a task was made, changed or resumed."""
        self._woken.set()

    async def run(self) -> None:
        """Tick until cancelled; the runs in flight are cancelled with it."""
        async with anyio.create_task_group() as servers:
            while True:
                self._woken = anyio.Event()
                pause = await self._tick(servers)
                with anyio.move_on_after(pause):
                    await self._woken.wait()

    async def _tick(self, servers: TaskGroup) -> float:
        """Start servers for what is due; return how long to sleep, in seconds."""
        try:
            # One even when nothing is due: a dead host's claim shows only when somebody tries.
            wanted = max(await self._store.tasks.count_due(self._now()), 1)
            for _ in range(min(wanted, self._most - self._serving)):
                self._serving += 1
                servers.start_soon(self._serve)
            return self._pause(await self._store.tasks.next_due())
        except Exception:
            logger.exception("The scheduler could not read the store; it tries again")
            return self._longest_s

    async def _serve(self) -> None:
        """Run due slots one after another until there are none."""
        try:
            while await self._run_due():
                self._failures = 0
        except PicoError as error:
            # Draining, at capacity, volume not writable: the slot was given back and is due again.
            self._failures += 1
            logger.warning("A due task could not be started: %s", error.message)
        except Exception:
            self._failures += 1
            logger.exception("A due task could not be run")
        else:
            self._failures = 0
        finally:
            self._serving -= 1

    def _pause(self, next_due: int | None) -> float:
        """Sleep until the next slot, but neither too short nor so long that a clock change goes unnoticed."""
        shortest = min(self._shortest_s * 2.0 ** min(self._failures, 10), self._longest_s)
        if next_due is None:
            return self._longest_s
        return min(max((next_due - self._now()) / 1000, shortest), self._longest_s)

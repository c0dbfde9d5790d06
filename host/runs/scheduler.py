"""Ticking inside the host (SCHEDULER=internal): due tasks run without anybody calling POST /task/check.

Either way, how late tasks are is told.

The database says when the next slot is; the scheduler sleeps until then and looks again every second, for
tool servers make tasks as well and the wall clock may jump. A look is one step down an index. Several hosts
may tick at once: claims in the store keep each slot to one run.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import KW_ONLY, dataclass, field
from typing import Final

import anyio
from anyio.abc import TaskGroup

from shared.clock import now_ms
from shared.errors import PicoError
from shared.schedules import ON_TIME_MS
from shared.store.store import Store

logger = logging.getLogger(__name__)

EXTERNAL: Final = (
    "SCHEDULER is external: due tasks, the heartbeat among them, run only when something calls "
    "POST /task/check, every minute for instance; SCHEDULER=internal has the host run them"
)

RunDue = Callable[[], Awaitable[object]]
"""Claims and runs one due slot to its end; what it returns is false if nothing could run."""

LOOK_EVERY_S: Final = 1.0
"""How often the next slot is asked for while the host sleeps, in seconds: other processes make tasks too."""

TRY_EVERY_S: Final = 60.0
"""How often a claim is tried though nothing is due, in seconds: so a dead host's slot is found."""


@dataclass(frozen=True, slots=True)
class Lateness:
    """How many tasks are overdue by more than two ticks, and how late the first is."""

    overdue: int
    seconds: int

    def note(self, mode: str, tasks: int) -> str | None:
        """Return what an operator should know, if anything."""
        if self.overdue:
            what = (
                EXTERNAL if mode == "external" else "see whether runs hang or MAX_CONCURRENT_RUNS is reached"
            )
            return f"{self.overdue} overdue, the first for {self.seconds} s. {what}"
        return EXTERNAL if mode == "external" and tasks else None


async def lateness(store: Store, now: int) -> Lateness:
    """Look how late tasks are; bounded by an index, however many there are."""
    overdue = await store.tasks.count_due(now - ON_TIME_MS)
    first = await store.tasks.next_due() if overdue else None
    return Lateness(overdue, 0 if first is None else (now - first) // 1000)


@dataclass(eq=False)
class Scheduler:
    """Runs due tasks, at most ``most`` at once, until it is cancelled; a failure never ends it."""

    store: Store
    run_due: RunDue
    _: KW_ONLY
    most: int
    now: Callable[[], int] = now_ms
    look_every_s: float = LOOK_EVERY_S
    try_every_s: float = TRY_EVERY_S
    _serving: int = field(default=0, init=False)
    _failures: int = field(default=0, init=False)
    _woken: anyio.Event = field(default_factory=anyio.Event, init=False)

    def wake(self) -> None:
        """Look again now: a task was made, changed or resumed."""
        self._woken.set()

    async def run(self) -> None:
        """Tick until cancelled; the runs in flight are cancelled with it."""
        async with anyio.create_task_group() as servers:
            while True:
                self._woken = anyio.Event()
                await self._start_servers(servers)
                with anyio.move_on_after(self.try_every_s):
                    await self._sleep_until_due()

    async def _start_servers(self, servers: TaskGroup) -> None:
        """Start as many servers as there are due tasks, but no more than may run at once."""
        try:
            due = await self.store.tasks.count_due(self.now())
        except Exception:
            logger.exception("The scheduler could not count the due tasks")
            due = 0
        # One even when nothing is due: a dead host's claim shows only when somebody tries.
        for _ in range(min(max(due, 1), self.most - self._serving)):
            self._serving += 1
            servers.start_soon(self._serve)

    async def _sleep_until_due(self) -> None:
        """Return when a slot is due or somebody called ``wake``, after one look's time at the earliest."""
        while True:
            ahead = await self._seconds_ahead()
            with anyio.move_on_after(ahead if 0 < ahead < self._pause() else self._pause()):
                await self._woken.wait()
                return
            if await self._seconds_ahead() <= 0:
                return

    async def _seconds_ahead(self) -> float:
        """Return how long the next slot is away, by the wall clock as it is now."""
        try:
            slot = await self.store.tasks.next_due()
        except Exception:
            logger.exception("The scheduler could not look for the next slot")
            return self.try_every_s
        return self.try_every_s if slot is None else (slot - self.now()) / 1000

    def _pause(self) -> float:
        """Return the time between two looks: longer and longer while starting tasks fails."""
        return float(min(self.look_every_s * 2.0 ** min(self._failures, 10), self.try_every_s))

    async def _serve(self) -> None:
        """Run due slots one after another until there are none."""
        try:
            while await self.run_due():
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

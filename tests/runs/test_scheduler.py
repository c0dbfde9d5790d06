"""Ticking inside the host, over a real store."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import anyio
import pytest

from host.runs.cleanup import keep_recovering
from host.runs.scheduler import EXTERNAL, Lateness, Scheduler, lateness
from shared.clock import now_ms
from shared.errors import AtCapacity, Unavailable
from shared.logging import Rounds
from shared.principals import EVERYTHING
from shared.store.sqlite.store import SqliteStore
from shared.task_values import TaskRunState
from shared.tasks import TaskService
from tests.contract.store.making import T0
from tests.contract.store.test_tasks_contract import a_run

HOME = "conv-home"
LEASE_MS = 60_000
FAR_S = 3600.0


@dataclass
class Runner:
    """Runs due slots against the store as a host does; a run lasts until ``gate`` opens."""

    store: SqliteStore
    now_offset: int = 0
    failures: int = 0
    calls: int = 0
    running: int = 0
    most_running: int = 0
    ran: list[str] = field(default_factory=list)
    gate: anyio.Event = field(default_factory=anyio.Event)
    changed: anyio.Event = field(default_factory=anyio.Event)

    def now(self) -> int:
        return now_ms() + self.now_offset

    async def run_due(self) -> int | None:
        self.calls += 1
        self.tell()
        if self.failures:
            self.failures -= 1
            raise AtCapacity("Too many runs; try again.", retry_after=1)
        claimed = await self.store.tasks.claim_due(host="a", now=self.now(), lease_ms=LEASE_MS)
        if claimed is None:
            return None
        self.running += 1
        self.most_running = max(self.running, self.most_running)
        self.tell()
        await self.gate.wait()
        self.running -= 1
        self.ran.append(claimed[0].id)
        await self.store.tasks.finish(
            claimed[1], state=TaskRunState.SUCCESS, result="ok", error=None, now=self.now()
        )
        self.tell()
        return 1

    def tell(self) -> None:
        self.changed.set()
        self.changed = anyio.Event()

    async def until(self, ids: list[str]) -> None:
        """Wait until exactly these tasks ran, in any order."""
        with anyio.fail_after(60):
            while sorted(self.ran) != sorted(ids):
                await self.changed.wait()


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    opened = SqliteStore(tmp_path / "store.db")
    await opened.conversations.create(HOME, now_ms())
    yield opened
    await opened.close()


@pytest.fixture
async def runner(store: SqliteStore) -> Runner:
    runner = Runner(store)
    runner.gate.set()
    return runner


async def add(store: SqliteStore, task_id: str, value: str = "2020-01-01", **fields: Any) -> None:
    service = TaskService(store, default_timezone="UTC")
    await service.schedule(
        reach=EVERYTHING,
        conversation_id=HOME,
        prompt="Look around",
        schedule_value=value,
        id=task_id,
        **{"schedule_type": "once", "run_if_past": True, **fields},
    )


async def test_what_is_due_at_the_start_runs_at_once(store: SqliteStore, runner: Runner) -> None:
    await add(store, "a")
    await add(store, "b")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Scheduler(store, runner.run_due, most=4).run)
        await runner.until(["a", "b"])
        tasks.cancel_scope.cancel()


async def test_lateness_is_counted_from_the_first_slot_that_is_overdue(store: SqliteStore) -> None:
    service = TaskService(store, default_timezone="UTC")
    for name, ahead in (("first", 1_000), ("second", 61_000)):
        await service.schedule(
            reach=EVERYTHING,
            conversation_id=HOME,
            prompt=name,
            schedule_type="interval",
            schedule_value=str(ahead),
            now=T0,
        )
    assert await lateness(store, T0 + 60_000) == Lateness(0, 0)
    assert await lateness(store, T0 + 131_000) == Lateness(1, 130)
    assert await lateness(store, T0 + 201_500) == Lateness(2, 200)


def test_tasks_that_only_an_outside_caller_runs_are_noted_before_one_is_late() -> None:
    on_time = Lateness(0, 0)
    assert on_time.note("external", 1) == EXTERNAL
    assert on_time.note("external", 0) is None
    assert on_time.note("internal", 1) is None


async def test_it_sleeps_until_the_next_slot_and_not_longer(store: SqliteStore, runner: Runner) -> None:
    await add(store, "a", "1000", schedule_type="interval")
    scheduler = Scheduler(store, runner.run_due, most=4, try_every_s=FAR_S)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(scheduler.run)
        await runner.until(["a"])
        # At the start, for the slot, and behind it to see that there is nothing more: no busy loop.
        assert runner.calls <= 5
        tasks.cancel_scope.cancel()


async def test_a_new_task_wakes_it(store: SqliteStore, runner: Runner) -> None:
    scheduler = Scheduler(store, runner.run_due, most=4, look_every_s=FAR_S, try_every_s=FAR_S)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(scheduler.run)
        with anyio.fail_after(60):
            await runner.changed.wait()
        await add(store, "a")
        scheduler.wake()
        await runner.until(["a"])
        tasks.cancel_scope.cancel()


async def test_a_task_that_another_process_made_is_noticed(tmp_path: Path, runner: Runner) -> None:
    scheduler = Scheduler(runner.store, runner.run_due, most=4, look_every_s=0.01, try_every_s=FAR_S)
    other = SqliteStore(tmp_path / "store.db")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(scheduler.run)
        with anyio.fail_after(60):
            await runner.changed.wait()
        await add(other, "a")
        await runner.until(["a"])
        tasks.cancel_scope.cancel()
    await other.close()


async def test_no_more_than_allowed_run_at_once_and_all_run_in_the_end(
    store: SqliteStore, runner: Runner
) -> None:
    runner.gate = anyio.Event()
    for number in range(7):
        await add(store, f"t{number}")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Scheduler(store, runner.run_due, most=3, look_every_s=0.01).run)
        with anyio.fail_after(60):
            while runner.running < 3:
                await runner.changed.wait()
        runner.gate.set()
        await runner.until([f"t{number}" for number in range(7)])
        tasks.cancel_scope.cancel()

    assert runner.most_running == 3


async def test_a_slow_run_does_not_hold_up_the_next_slot(store: SqliteStore, runner: Runner) -> None:
    runner.gate = anyio.Event()
    await add(store, "slow")
    scheduler = Scheduler(store, runner.run_due, most=2, look_every_s=FAR_S, try_every_s=FAR_S)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(scheduler.run)
        with anyio.fail_after(60):
            while runner.running < 1:
                await runner.changed.wait()
            await add(store, "next")
            scheduler.wake()
            while runner.running < 2:
                await runner.changed.wait()
        tasks.cancel_scope.cancel()


async def test_a_jump_of_the_wall_clock_is_noticed(store: SqliteStore, runner: Runner) -> None:
    await add(store, "tomorrow", str(24 * 3600 * 1000), schedule_type="interval")
    scheduler = Scheduler(store, runner.run_due, most=1, now=runner.now, look_every_s=0.01, try_every_s=FAR_S)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(scheduler.run)
        with anyio.fail_after(60):
            await runner.changed.wait()
        runner.now_offset = 25 * 3600 * 1000
        await runner.until(["tomorrow"])
        tasks.cancel_scope.cancel()


async def test_a_dead_hosts_slot_is_taken_over(store: SqliteStore, runner: Runner) -> None:
    await add(store, "a")
    assert await store.tasks.claim_due(host="dead", now=now_ms(), lease_ms=0) is not None

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Scheduler(store, runner.run_due, most=1).run)
        await runner.until(["a"])
        tasks.cancel_scope.cancel()


async def test_a_failure_to_start_is_survived(store: SqliteStore, runner: Runner) -> None:
    runner.failures = 3
    await add(store, "a")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Scheduler(store, runner.run_due, most=1, look_every_s=0.005).run)
        await runner.until(["a"])
        tasks.cancel_scope.cancel()


async def test_two_schedulers_run_each_slot_once(tmp_path: Path, store: SqliteStore) -> None:
    other = SqliteStore(tmp_path / "store.db")
    runners = [Runner(store), Runner(other)]
    ids = [f"t{number}" for number in range(20)]
    for task_id in ids:
        await add(store, task_id)

    async with anyio.create_task_group() as tasks:
        for each in runners:
            each.gate.set()
            tasks.start_soon(Scheduler(each.store, each.run_due, most=4).run)
        with anyio.fail_after(60):
            while len(runners[0].ran) + len(runners[1].ran) < len(ids):
                await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    await other.close()

    assert sorted(runners[0].ran + runners[1].ran) == sorted(ids)


async def test_waiting_for_a_busy_conversation_is_no_busy_loop(store: SqliteStore, runner: Runner) -> None:
    await add(store, "a", context_mode="group")
    await store.runs.begin(a_run(conversation_id=HOME))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Scheduler(store, runner.run_due, most=4, look_every_s=FAR_S, try_every_s=FAR_S).run)
        with anyio.fail_after(60):
            await runner.changed.wait()
        with anyio.move_on_after(0.2):
            await runner.changed.wait()
        tasks.cancel_scope.cancel()

    assert runner.calls == 1
    assert runner.ran == []


class Begins:
    """What begins again what was left, and fails in its first round."""

    def __init__(self) -> None:
        self.rounds = 0
        self.well = anyio.Event()

    async def begin_again(self) -> None:
        self.rounds += 1
        if self.rounds == 1:
            raise OSError
        self.well.set()


async def test_a_round_of_recovering_that_fails_is_told_once_and_followed_by_another(
    store: SqliteStore, caplog: pytest.LogCaptureFixture
) -> None:
    runs, tasks = Begins(), Begins()
    served, left = cast(Any, SimpleNamespace(background=runs)), cast(Any, tasks)
    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            group.start_soon(keep_recovering, store, served, left, 60)
            await tasks.well.wait()
            group.cancel_scope.cancel()
    assert runs.rounds == 3
    assert caplog.text.count("Traceback") == 1


def test_without_the_store_the_background_says_so_once_and_once_that_all_of_it_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    logger = logging.getLogger("picoclaw.test")
    one, other = Rounds(logger, "One failed"), Rounds(logger, "Another failed")
    for rounds in (one, other, one):
        with rounds:
            raise Unavailable("The database cannot be reached", retry_after=1)
    for rounds in (one, other, one):
        with rounds:
            pass
    waits = "The background waits for the store: The database cannot be reached"
    assert caplog.messages == [waits, "The background goes on"]

"""The clock was ahead for a while and is set back: what was planned meanwhile doesn't wait for that day."""

from __future__ import annotations

import logging
from typing import Any

import anyio
import pytest

from host.runs.cleanup import keep_planned
from shared.principals import EVERYTHING, Reach
from shared.store.store import Store
from shared.task_values import Task
from shared.tasks import TaskService
from tests.contract.store.making import T0
from tests.contract.store.test_tasks_contract import HOME, a_once, a_task, finish

DAY = 86_400_000
AHEAD = T0 + 400 * DAY


async def planned(store: Store, task_id: str) -> int | None:
    task = await store.tasks.get(task_id, EVERYTHING)
    assert task is not None
    return task.next_run


@pytest.fixture
async def tasks(store: Store) -> TaskService:
    await store.conversations.create(HOME, T0)
    return TaskService(store, default_timezone="UTC")


async def made(tasks: TaskService, kind: str, value: str, now: int, **more: Any) -> Task:
    return await tasks.schedule(
        prompt="x",
        schedule_type=kind,
        schedule_value=value,
        reach=Reach(HOME),
        conversation_id=HOME,
        now=now,
        **more,
    )


async def test_what_was_made_while_the_clock_was_ahead_is_planned_from_now(
    tasks: TaskService, store: Store
) -> None:
    often = await made(tasks, "interval", "60000", AHEAD)
    daily = await made(tasks, "cron", "0 9 * * *", AHEAD)
    assert set(await tasks.plan_anew(T0)) == {often.id, daily.id}
    assert await planned(store, often.id) == T0 + 60_000
    slot = await planned(store, daily.id)
    assert slot is not None
    assert T0 < slot <= T0 + DAY
    assert list(await tasks.plan_anew(T0)) == []


async def test_what_a_claim_moved_on_meanwhile_is_planned_anew_and_no_slot_runs_twice(
    tasks: TaskService, store: Store
) -> None:
    task = await made(tasks, "interval", "60000", T0)
    claimed = await store.tasks.claim_due(host="h", now=AHEAD, lease_ms=1000)
    assert claimed is not None
    await finish(store, claimed[1], now=AHEAD)
    assert await tasks.plan_anew(T0) == [task.id]
    again = await store.tasks.claim_due(host="h", now=T0 + 60_000, lease_ms=1000)
    # The first slot was run already, when the clock was ahead.
    assert again is None
    assert await planned(store, task.id) == T0 + 120_000
    again = await store.tasks.claim_due(host="h", now=T0 + 120_000, lease_ms=1000)
    assert again is not None
    assert again[1].slot == str(T0 + 120_000)


async def test_another_try_of_a_task_that_runs_once_is_planned_anew_and_its_own_time_stays(
    tasks: TaskService, store: Store
) -> None:
    await store.tasks.add(a_once("wished", next_run=AHEAD), quota=10)
    await store.tasks.add(a_once("tried", next_run=AHEAD, attempts=1), quota=10)
    assert await tasks.plan_anew(T0) == ["tried"]
    assert (await planned(store, "tried"), await planned(store, "wished")) == (T0, AHEAD)


async def test_what_is_planned_well_or_paused_or_past_its_end_stays(tasks: TaskService, store: Store) -> None:
    well = [
        await made(tasks, "interval", "60000", T0),
        await made(tasks, "cron", "0 9 1 1 *", T0),
        # Planned by a host whose clock is a minute ahead.
        await made(tasks, "interval", "60000", T0 + 60_000),
    ]
    paused = await made(tasks, "interval", "60000", AHEAD)
    await tasks.pause(paused.id, Reach(HOME), now=AHEAD)
    await store.tasks.add(a_task("gone", timezone="Nowhere/Gone", next_run=AHEAD), quota=10)
    before = [await planned(store, each.id) for each in well]
    assert list(await tasks.plan_anew(T0)) == []
    assert [await planned(store, each.id) for each in well] == before


async def test_a_host_looks_at_its_start_and_when_its_clock_goes_back_and_says_so(
    tasks: TaskService, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    clock = AHEAD
    at_start = await made(tasks, "interval", "60000", AHEAD + DAY)
    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: keep_planned(tasks, wall=lambda: clock, every_s=0.01))
            while await planned(store, at_start.id) != AHEAD + 60_000:
                await anyio.sleep(0.01)
            clock = T0
            while await planned(store, at_start.id) != T0 + 60_000:
                await anyio.sleep(0.01)
            group.cancel_scope.cancel()
    said = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert ["set back" in record.getMessage() for record in said] == [True, True]


async def test_a_host_whose_look_fails_looks_again(tasks: TaskService, store: Store) -> None:
    ahead = await made(tasks, "interval", "60000", AHEAD + DAY)
    looks = 0

    def wall() -> int:
        nonlocal looks
        looks += 1
        if looks == 2:
            raise OSError
        return AHEAD

    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: keep_planned(tasks, wall=wall, every_s=0.01))
            while await planned(store, ahead.id) != AHEAD + 60_000:
                await anyio.sleep(0.01)
            group.cancel_scope.cancel()

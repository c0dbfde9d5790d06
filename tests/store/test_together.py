"""Writes that wait for the volume are one transaction and one shipping, and each has its own outcome."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import anyio
import pytest

from shared.errors import LeaseLost, NotDurable
from shared.store.sqlite.store import SqliteStore
from shared.values import Lease, RunState
from tests.contract.store.making import T0, a_run, an_end
from tests.store.places import Places

pytestmark = pytest.mark.anyio

AT_ONCE = 12


async def begun(store: SqliteStore) -> list[Lease]:
    return [
        await store.runs.begin(a_run(str(number), f"c{number}", create=True)) for number in range(AT_ONCE)
    ]


async def ended(store: SqliteStore, leases: Sequence[Lease]) -> dict[str, Exception | None]:
    """End runs at once; what each of the callers was told."""
    told: dict[str, Exception | None] = {}

    async def end(lease: Lease) -> None:
        try:
            await store.runs.finish(lease, an_end(), [], [], T0)
        except Exception as error:  # noqa: BLE001 - it is what the test looks at
            told[lease.run_id] = error
        else:
            told[lease.run_id] = None

    async with anyio.create_task_group() as tasks:
        for lease in leases:
            tasks.start_soon(end, lease)
    return told


async def states(store: SqliteStore) -> list[RunState]:
    runs = [await store.runs.find(f"run-{number}", None) for number in range(AT_ONCE)]
    return [run.state for run in runs if run is not None]


async def test_who_waits_together_is_one_transaction(places: Places) -> None:
    async with places.host() as store:
        leases = await begun(store)
        commits = store._db._commits
        assert set((await ended(store, leases)).values()) == {None}
        assert store._db._commits - commits < AT_ONCE / 2
    places.lose_local_disk()
    async with places.host() as store:
        assert await states(store) == [RunState.SUCCESS] * AT_ONCE


async def test_one_without_a_lease_is_refused_alone(places: Places) -> None:
    async with places.host() as store:
        leases = await begun(store)
        leases[5] = replace(leases[5], fence=9)
        told = await ended(store, leases)
        assert isinstance(told.pop("run-5"), LeaseLost)
        assert set(told.values()) == {None}
    places.lose_local_disk()
    async with places.host() as store:
        assert await states(store) == [
            RunState.RUNNING if number == 5 else RunState.SUCCESS for number in range(AT_ONCE)
        ]


async def test_a_volume_that_is_gone_is_told_to_all_who_wait(places: Places) -> None:
    async with places.host() as store:
        leases = await begun(store)
        await store.durable()
        places.volume.rename(places.volume.with_name("away"))
        told = await ended(store, leases)
        places.volume.with_name("away").rename(places.volume)
        assert [type(error) for error in told.values()] == [NotDurable] * AT_ONCE


async def test_who_leaves_before_its_turn_has_written_nothing(places: Places) -> None:
    async with places.host() as store:
        lease, *others = await begun(store)
        async with store._db._together._turn, anyio.create_task_group() as tasks:
            tasks.start_soon(store.runs.finish, lease, an_end(), [], [], T0)
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
        assert set((await ended(store, others)).values()) == {None}
        assert await states(store) == [RunState.RUNNING, *[RunState.SUCCESS] * (AT_ONCE - 1)]

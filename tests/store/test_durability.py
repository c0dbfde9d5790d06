"""Acknowledged means on the volume."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import anyio
import pytest

from shared.store.volume import lock
from shared.store.volume.volume import Volume
from tests.store.places import Places, add, integrity, names


async def test_what_is_durable_survives_the_loss_of_the_local_disk(places: Places) -> None:
    store = places.open()
    await add(store, "a", "b")
    saved = places.volume.with_name("saved")
    subprocess.run(["cp", "-a", places.volume, saved], check=True)
    await store.close()
    places.lose_local_disk()
    copy = Places(saved, places.local)
    async with copy.host() as again:
        assert await names(again) == {"a", "b"}
        assert integrity(copy.database) == "ok"


async def test_nothing_is_synced_when_nothing_was_written(places: Places) -> None:
    async with places.host() as store:
        await add(store, "a")
        before = _state_of(places.volume)
        await store.conversations.page(limit=10, cursor=None)
        await store.durable()
        assert _state_of(places.volume) == before


async def test_durable_covers_what_another_process_committed(places: Places) -> None:
    async with places.host() as store:
        beside = places.beside()
        await add(store, "a")
        await beside.conversations.create("b", now=1)
        before = _state_of(places.volume)
        await store.durable()
        assert _state_of(places.volume) != before
        await beside.close()


async def test_who_leaves_while_it_is_shipped_takes_nothing_from_the_others(places: Places) -> None:
    async with places.host() as store:
        await store.conversations.create("a", now=1)
        before = _state_of(places.volume)
        volume = store._db._shipper
        assert isinstance(volume, Volume)
        with volume._carrier._mutex:
            first, second, third = (asyncio.create_task(store.durable()) for _ in range(3))
            await anyio.wait_all_tasks_blocked()
            first.cancel()
            third.cancel()
            await anyio.wait_all_tasks_blocked()
        await second
        assert first.cancelled()
        assert third.cancelled()
        assert _state_of(places.volume) != before


@pytest.mark.parametrize("local_disk", ["kept", "lost"])
async def test_nothing_acknowledged_is_lost_when_host_and_tool_server_are_killed(
    places: Places, local_disk: str
) -> None:
    told: set[str] = set()
    for number in range(4):
        host = places.start_writer("host", f"host{number}")
        server = places.start_writer("beside", f"server{number}")
        time.sleep(random.uniform(0.02, 0.25))
        for process in (server, host) if number % 2 else (host, server):
            process.send_signal(signal.SIGKILL)
        told |= _lines(host) | _lines(server)
        if local_disk == "lost":
            places.lose_local_disk()
        async with places.host() as store:
            assert told <= await names(store)
            assert integrity(places.database) == "ok"
    assert told


async def test_a_tool_server_left_alone_keeps_its_promise(places: Places) -> None:
    host = places.start_writer("host", "host")
    server = places.start_writer("beside", "server")
    host.kill()
    told = _lines(host)
    assert server.stdout is not None
    for _ in range(20):
        told.add(server.stdout.readline().strip())
    server.kill()
    told |= _lines(server)
    places.lose_local_disk()
    async with places.host() as store:
        assert told <= await names(store)


async def test_a_tool_server_that_outlives_an_orderly_host_keeps_its_promise(places: Places) -> None:
    store = places.open()
    await add(store, "a")
    await store.close()
    server = places.beside()
    await add(server, "b")
    await server.close()
    places.lose_local_disk()
    async with places.host() as again:
        assert await names(again) == {"a", "b"}


async def test_no_process_opens_the_live_database_behind_sqlites_back(places: Places) -> None:
    opened: list[str] = []

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str | Path):
            opened.append(os.fspath(arguments[0]))

    async with places.host() as store:
        sys.addaudithook(watch)
        await add(store, *(f"c{number}" for number in range(300)))
        await store.conversations.delete("c7")
        await store.durable()
        assert f"{places.database}-wal" in opened
        assert not {str(places.database), f"{places.database}-shm"} & set(opened)


def _state_of(volume: Path) -> list[tuple[str, int, int]]:
    found = [(path.name, path.stat()) for path in sorted(volume.iterdir()) if path.name != "host.lock"]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in found]


def _lines(process: subprocess.Popen[str]) -> set[str]:
    rest, _ = process.communicate(timeout=60)
    lines = rest.split("\n")
    return set(lines[:-1])


async def test_a_state_from_another_run_of_the_system_is_not_trusted(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = places.open()
    await add(store, "a")
    await store.close()
    # A power failure may leave anything in the local file: here, nothing but zeros.
    places.database.write_bytes(bytes(places.database.stat().st_size))
    state = lock.Sidecar(places.database)
    found = state.read()
    assert found is not None
    stat = places.database.stat()
    state.write(found._replace(boot="another boot", base=(stat.st_size, stat.st_mtime_ns)))
    state.close()
    async with places.host() as again:
        assert await names(again) == {"a"}

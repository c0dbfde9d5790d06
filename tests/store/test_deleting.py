"""What is deleted is gone from the database file, and from the volume once its history was folded."""

from __future__ import annotations

import threading
from pathlib import Path

import anyio.to_thread

from shared.store.sqlite.store import SqliteStore
from shared.store.volume import chain
from shared.store.volume.carrier import Carrier
from shared.store.volume.volume import Compaction
from shared.usage_values import Usage
from shared.values import Compaction as OfConversation
from shared.values import Event, NewMessage, NewRun, RunEnd, RunState
from tests.store.places import Places, add

SECRET = "the-passphrase-is-rosebud"


async def fill(store: SqliteStore) -> None:
    text = [{"type": "text", "text": SECRET}]
    await store.conversations.create("c", 1)
    message = NewMessage("m1", "user", text, SECRET)
    lease = await store.runs.begin(NewRun("r1", "c", message, owner="h", now=1, lease_ms=10_000))
    await store.runs.record([(lease, [Event(1, "chunk", {"text": SECRET})])], 1)
    await store.compactions.add(lease, OfConversation("summary", 1, 1, SECRET), 1)
    end = RunEnd(RunState.SUCCESS, {"result": SECRET}, Usage(), "m", error=SECRET)
    await store.runs.finish(lease, end, [], [], 2)
    await store.outbound.add("c", "c", SECRET * 500, "Pico", 1)
    await store.durable()


async def test_a_deleted_conversation_leaves_no_byte_in_the_database(places: Places) -> None:
    async with places.host() as store:
        await fill(store)
        await store.conversations.delete("c")
        await store.durable()
        carrier = Carrier(places.database)
        await anyio.to_thread.run_sync(carrier.roll_over)
        carrier.abandon()
    for path in places.local.iterdir():
        assert SECRET.encode() not in path.read_bytes(), path.name


async def test_folding_twice_takes_deleted_bytes_off_the_volume(places: Places) -> None:
    async with places.host() as store:
        await fill(store)
        await store.conversations.delete("c")
        assert found_in(places.volume)
        carrier = Carrier(places.database)
        for number in range(chain.GENERATIONS):
            await add(store, *(f"{number}-{each}" for each in range(100 * (number + 1))))
            await anyio.to_thread.run_sync(carrier.roll_over)
            assert Compaction(carrier, threading.Event(), least_bytes=0).run_if_due()
        carrier.abandon()
    assert not found_in(places.volume)


def found_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if SECRET.encode() in path.read_bytes()]

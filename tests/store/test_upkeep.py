"""Checkpoints and compaction: the log and the volume stay small, and nothing gets lost on the way."""

from __future__ import annotations

import os
import shutil
import sqlite3
import threading
from pathlib import Path
from unittest import mock

import anyio
import pytest

from shared.errors import StoreEnvironment
from shared.store.sqlite.store import SqliteStore
from shared.store.volume import chain, layout, snapshot, volume
from shared.store.volume.carrier import Carrier
from shared.store.volume.volume import Compaction
from tests.store.places import Places, add, integrity, names
from tests.store.test_damage import small_disk


async def write_a_lot(store: SqliteStore, prefix: str, count: int = 60) -> set[str]:
    written = set()
    for number in range(count):
        name = f"{prefix}{number}"
        await store.conversations.create(name, now=1)
        await store.outbound.add(name, name, "x" * 100_000, "agent", 1)
        await store.durable()
        written.add(name)
    return written


async def copy_of(places: Places, name: str) -> set[str]:
    """Return what a host elsewhere would find on the volume as it is now."""
    saved = places.volume.with_name(f"{name}-saved")
    shutil.copytree(places.volume, saved)
    copy = Places(saved, places.local.with_name(f"{name}-local"))
    async with copy.host() as store:
        assert integrity(copy.database) == "ok"
        return await names(store)


async def test_the_local_log_starts_anew_when_it_is_long(places: Places) -> None:
    async with places.host() as store:
        log = places.database.with_name("pico.db-wal")
        written = await write_a_lot(store, "c")
        with anyio.fail_after(60):
            while log.stat().st_size > 4 << 20:
                await anyio.sleep(0.01)
        assert len(places.listing().segments) > 1
        assert await copy_of(places, "a") == written


async def test_the_host_writes_on_while_segments_are_folded(places: Places) -> None:
    async with places.host() as store:
        await add(store, "a")
        carrier = Carrier(places.database)
        assert await anyio.to_thread.run_sync(carrier.roll_over)
        await add(store, "b")
        assert await anyio.to_thread.run_sync(carrier.roll_over)
        done = anyio.Event()

        async def fold() -> None:
            folding = Compaction(carrier, threading.Event(), least_bytes=0)
            assert await anyio.to_thread.run_sync(folding.run_if_due)
            done.set()

        written = {"a", "b"}
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(fold)
            while not done.is_set():
                written |= await write_a_lot(store, f"w{len(written)}-", 1)
        assert [each.id.number for each in places.listing().snapshots] == [1, 3]
        carrier.abandon()
        assert await copy_of(places, "a") == written


async def test_two_generations_are_kept_and_the_oldest_goes(places: Places) -> None:
    written: set[str] = set()
    async with places.host() as store:
        carrier = Carrier(places.database)
        folding = Compaction(carrier, threading.Event(), least_bytes=0)
        for number in range(4):
            # More each time: segments are folded when they are longer than the snapshot.
            written |= await write_a_lot(store, f"c{number}-", 3 ** (number + 1))
            await anyio.to_thread.run_sync(carrier.roll_over)
            assert await anyio.to_thread.run_sync(folding.run_if_due)
            assert await copy_of(places, str(number)) == written
        listing = places.listing()
        assert len(listing.snapshots) == 2
        assert listing.segments[0] >= listing.snapshots[0].id
        listing.snapshots[-1].path.write_bytes(b"torn")
        assert await copy_of(places, "without the newest") == written
        carrier.abandon()


async def test_a_compaction_that_is_stopped_leaves_nothing_behind(places: Places) -> None:
    async with places.host() as store:
        await add(store, "a")
        carrier = Carrier(places.database)
        await anyio.to_thread.run_sync(carrier.roll_over)
        before = sorted(places.volume.iterdir())
        over = threading.Event()
        over.set()
        assert not Compaction(carrier, over, least_bytes=0).run_if_due()
        assert sorted(places.volume.iterdir()) == before
        assert not list(places.local.glob("*.compacted*"))
        carrier.abandon()


@pytest.mark.parametrize("place", ["LOCAL_DB_PATH", "STORE_DIR"])
async def test_segments_are_not_folded_where_a_copy_would_take_the_room_that_turns_need(
    places: Places, tmp_path: Path, place: str
) -> None:
    with small_disk(tmp_path / "small", "100m") as small:
        volume, local = places.volume, small / "local"
        if place == "STORE_DIR":
            volume, local = small / "volume", places.local
        async with Places(volume, local).host() as store:
            await write_a_lot(store, "c")
            carrier = Carrier(local / "pico.db")
            folding = Compaction(carrier, threading.Event(), least_bytes=0)
            assert await anyio.to_thread.run_sync(carrier.roll_over)
            room = os.statvfs(small)
            (small / "filler").write_bytes(bytes(room.f_bavail * room.f_frsize - (10 << 20)))
            with pytest.raises(StoreEnvironment, match=f"{place}: .* bytes are free in {small}"):
                folding.run_if_due()
            assert not folding.run_if_due(), "it is said once"
            await add(store, "written all the same")
            (small / "filler").unlink()
            assert await anyio.to_thread.run_sync(carrier.roll_over)
            assert folding.run_if_due()
            carrier.abandon()


async def test_a_damaged_history_is_replaced_by_a_new_snapshot(
    places: Places, caplog: pytest.LogCaptureFixture
) -> None:
    async with places.host() as store:
        await add(store, "a")
        carrier = Carrier(places.database)
        await anyio.to_thread.run_sync(carrier.roll_over)
        await add(store, "b")
        first = places.volume / f"wal-{places.listing().segments[0]}"
        content = first.read_bytes()
        first.write_bytes(content[:2000] + b"\xff" * 100 + content[2100:])
        assert Compaction(carrier, threading.Event(), least_bytes=0).run_if_due()
        assert "damaged" in caplog.text
        await add(store, "c")
        assert await copy_of(places, "a") == {"a", "b", "c"}
        carrier.abandon()


async def test_many_short_segments_are_folded_too(places: Places) -> None:
    async with places.host():
        carrier = Carrier(places.database)
        for _ in range(volume.MOST_SEGMENTS + 1):
            assert carrier.roll_over()
        state = carrier.state()
        assert volume.is_due(places.volume, state.segment, volume.LEAST_BYTES)
        carrier.abandon()


async def test_a_reader_in_the_way_delays_the_new_epoch_but_loses_nothing(places: Places) -> None:
    async with places.host() as store:
        await add(store, "a")
        reader = sqlite3.connect(places.database, isolation_level=None)
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM conversations").fetchone() == (1,)
        await add(store, "b")
        carrier = Carrier(places.database)
        assert not carrier.roll_over()
        await add(store, "c")
        assert await copy_of(places, "before") == {"a", "b", "c"}
        reader.close()
        await add(store, "d")
        assert carrier.roll_over()
        await add(store, "e")
        assert await copy_of(places, "after") == {"a", "b", "c", "d", "e"}
        carrier.abandon()


async def test_a_kill_between_the_new_segment_and_the_new_epoch_loses_nothing(places: Places) -> None:
    store = places.open()
    await add(store, "a")
    carrier = Carrier(places.database)
    state = carrier.state()
    # What a host leaves that dies right after it made the next segment: a file without a frame.
    carrier._create(state, state.segment._replace(number=state.segment.number + 1))
    carrier.abandon()
    await add(store, "b")
    assert await copy_of(places, "x") == {"a", "b"}
    await store.close()
    places.lose_local_disk()
    async with places.host() as again:
        assert await names(again) == {"a", "b"}


def test_only_the_volumes_own_files_lie_on_it(places: Places) -> None:
    async def use() -> None:
        async with places.host() as store:
            await add(store, "a")

    anyio.run(use)
    assert {path.name.split("-")[0] for path in places.volume.iterdir()} == {
        "host.lock",
        "store.json",
        "snapshot",
        "wal",
    }
    assert all(_mode(path) == 0o600 for path in [*places.volume.iterdir(), *places.local.iterdir()])


def _mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.mark.parametrize("step", [1, 2])
def test_a_snapshot_can_be_given_up_before_it_is_read_back_and_before_it_stands(
    tmp_path: Path, step: int
) -> None:
    (tmp_path / "volume").mkdir()
    source = tmp_path / "closed.db"
    source.write_bytes(b"x" * 100)
    calls: list[int] = []

    def give_up() -> None:
        calls.append(len(calls) + 1)
        if calls[-1] == step:
            raise volume.Stopped

    with pytest.raises(volume.Stopped):
        snapshot.publish(source, tmp_path / "volume", layout.FileId(0, 1), give_up)
    assert list((tmp_path / "volume").iterdir()) == []


def test_a_snapshot_is_on_the_disk_before_it_stands(tmp_path: Path) -> None:
    store_dir = tmp_path / "volume"
    store_dir.mkdir()
    source = tmp_path / "closed.db"
    source.write_bytes(b"x" * 100)
    synced: list[tuple[str, bool]] = []
    sync = os.fsync

    def fsync(fd: int) -> None:
        stands = bool(layout.scan(store_dir).snapshots)
        synced.append((os.readlink(f"/proc/self/fd/{fd}"), stands))
        sync(fd)

    with mock.patch("os.fsync", fsync):
        snapshot.publish(source, store_dir, layout.FileId(0, 1))
    (file, stood_before), (directory, stands) = synced
    assert Path(file).parent == store_dir
    assert (directory, stood_before, stands) == (str(store_dir), False, True)


async def test_only_the_host_that_holds_the_volume_removes_what_no_restore_needs(places: Places) -> None:
    async with places.host() as store:
        carrier = Carrier(places.database)
        folding = Compaction(carrier, threading.Event(), least_bytes=0)
        for number in range(3):
            await write_a_lot(store, f"c{number}-", 3 ** (number + 1))
            await anyio.to_thread.run_sync(carrier.roll_over)
            first = places.listing().snapshots[0].path
            saved = first.read_bytes()
            assert await anyio.to_thread.run_sync(folding.run_if_due)
        carrier.abandon()
    first.write_bytes(saved)
    present = layout.holder(places.volume)
    assert present is not None
    chain.clean(places.volume, "another")
    assert first.exists()
    chain.clean(places.volume, present.token)
    assert not first.exists()
    first.write_bytes(saved)
    (places.volume / layout.LOCK).unlink()
    chain.clean(places.volume, present.token)
    assert first.exists()

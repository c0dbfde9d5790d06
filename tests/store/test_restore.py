"""The start picks the newest good state, whatever was left behind."""

from __future__ import annotations

import logging
import shutil
import sqlite3
import threading
from pathlib import Path

import pytest

from shared.errors import NotDurable, StoreDamaged, StoreError
from shared.store.volume import layout, snapshot, volume
from shared.store.volume.carrier import Carrier
from shared.store.volume.opening import rename_store
from tests.store.places import Places, add, integrity, names


async def grow(places: Places, *, compact: bool = True) -> None:
    """Leave a volume with two generations: a snapshot, segments, a newer snapshot, segments."""
    for number in range(4):
        store = places.open()
        await add(store, f"c{number}")
        if number == 2 and compact:
            fold(places)
        await store.close()


def fold(places: Places) -> None:
    carrier = Carrier(places.database)
    assert volume.Compaction(carrier, threading.Event(), least_bytes=0).run_if_due()
    carrier.abandon()


ALL = {"c0", "c1", "c2", "c3"}


async def test_a_torn_snapshot_costs_nothing_while_the_one_before_is_there(
    places: Places, caplog: pytest.LogCaptureFixture
) -> None:
    await grow(places)
    newest = places.listing().snapshots[-1].path
    with newest.open("r+b") as file:
        file.truncate(newest.stat().st_size // 2)
    places.lose_local_disk()
    with caplog.at_level(logging.WARNING):
        async with places.host() as store:
            assert await names(store) == ALL
    assert newest.name in caplog.text


async def test_a_half_written_snapshot_is_ignored(places: Places) -> None:
    await grow(places)
    half = places.volume / "snapshot-000009-00000099.tmp"
    half.write_bytes(b"SQLite format 3\0half")
    places.lose_local_disk()
    places.local.mkdir()
    scratch = places.database.with_name("pico.db.compacted")
    scratch.write_bytes(b"half")
    async with places.host() as store:
        assert await names(store) == ALL
        assert not half.exists()
        assert not scratch.exists()


@pytest.mark.parametrize("cut", [1, 30, 4000, 4120, 9000])
async def test_a_torn_tail_of_the_last_segment_loses_only_what_is_torn(places: Places, cut: int) -> None:
    store = places.open()
    await add(store, "kept")
    length = _last_segment(places).stat().st_size
    await add(store, "torn")
    crashed = Places(places.volume.with_name("crashed"), places.local.with_name("elsewhere"))
    shutil.copytree(places.volume, crashed.volume)
    await store.close()
    path = _last_segment(crashed)
    with path.open("r+b") as file:
        file.truncate(max(length, path.stat().st_size - cut))
    async with crashed.host() as again:
        assert "kept" in await names(again)
        assert integrity(crashed.database) == "ok"


@pytest.mark.parametrize("fault", ["torn", "missing", "overwritten"])
async def test_a_damaged_segment_in_the_middle_stops_the_start_and_names_the_file(
    places: Places, fault: str
) -> None:
    await grow(places, compact=False)
    victim = segment_paths(places)[2]
    if fault == "missing":
        victim.unlink()
    else:
        with victim.open("r+b") as file:
            file.seek(layout.HEAD + 600)
            file.write(b"\xff" * 100) if fault == "overwritten" else file.truncate()
    places.lose_local_disk()
    before = files_of(places)
    with pytest.raises(StoreDamaged, match=rf"{victim.name} is .*picoclaw store salvage"):
        places.open()
    assert files_of(places) == before


async def test_snapshots_with_a_wrong_checksum_stop_the_start(places: Places) -> None:
    await grow(places)
    listing = places.listing()
    for each in listing.snapshots:
        each.path.rename(each.path.with_name(f"snapshot-{each.id}.00000000.db"))
    places.lose_local_disk()
    with pytest.raises(StoreDamaged, match=r"00000000\.db is damaged"):
        places.open()


async def test_a_volume_without_a_usable_file_stops_the_start_with_a_sentence(places: Places) -> None:
    await grow(places)
    for each in places.listing().snapshots:
        each.path.write_bytes(b"nothing")
    for path in segment_paths(places):
        path.unlink()
    places.lose_local_disk()
    with pytest.raises(StoreError, match=r"snapshot-.* is damaged"):
        places.open()


async def test_a_runtime_database_ahead_of_the_volume_is_used(
    places: Places, caplog: pytest.LogCaptureFixture
) -> None:
    store = places.open()
    await add(store, "a")
    old = places.volume.with_name("old")
    shutil.copytree(places.volume, old)
    await store.close()
    store = places.open()
    await add(store, "b")
    await store.close()
    shutil.rmtree(places.volume)
    old.rename(places.volume)
    async with places.host() as again:
        assert await names(again) == {"a", "b"}
    assert "behind" in caplog.text
    places.lose_local_disk()
    async with places.host() as again:
        assert await names(again) == {"a", "b"}


async def test_a_volume_ahead_of_the_runtime_database_is_used(places: Places) -> None:
    store = places.open()
    await add(store, "a")
    await store.close()
    elsewhere = Places(places.volume, places.local.with_name("elsewhere"))
    async with elsewhere.host() as other:
        await add(other, "b")
    async with places.host() as again:
        assert await names(again) == {"a", "b"}


async def test_another_stores_volume_wins_over_the_runtime_database(places: Places) -> None:
    async with places.host() as store:
        await add(store, "a")
    other = Places(places.volume.with_name("other"), places.local.with_name("other-local"))
    async with other.host() as store:
        await add(store, "x")
    shutil.rmtree(places.volume)
    other.volume.rename(places.volume)
    async with places.host() as again:
        assert await names(again) == {"x"}


async def test_a_renamed_store_is_restored_over_a_surviving_runtime_database(places: Places) -> None:
    store = places.open()
    await add(store, "a")
    old = places.volume.with_name("old")
    shutil.copytree(places.volume, old)
    await add(store, "b")
    await store.close()
    shutil.rmtree(places.volume)
    old.rename(places.volume)
    rename_store(places.volume)
    async with places.host() as again:
        assert await names(again) == {"a"}


async def test_an_emptied_volume_gets_the_surviving_runtime_database_with_a_warning(
    places: Places, caplog: pytest.LogCaptureFixture
) -> None:
    async with places.host() as store:
        await add(store, "a")
        made = store.origin
    shutil.rmtree(places.volume)
    async with places.host() as store:
        assert await names(store) == {"a"}
        assert made is not None
        assert (made.new, store.origin) == (True, (made.id, False))
    assert "gets all of its store again" in caplog.text
    places.lose_local_disk()
    async with places.host() as store:
        assert await names(store) == {"a"}


async def test_a_stale_log_is_never_replayed_onto_a_replaced_database(places: Places) -> None:
    writer = places.start_writer("host", "w")
    assert writer.stdout is not None
    told = {writer.stdout.readline().strip() for _ in range(10)}
    writer.kill()
    writer.communicate()
    log = places.database.with_name("pico.db-wal")
    assert log.stat().st_size > 0
    replacement = places.local / "replacement"
    connection = sqlite3.connect(replacement)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("CREATE TABLE stranger (x)")
    connection.close()
    replacement.replace(places.database)
    async with places.host() as store:
        assert told <= await names(store)
        assert integrity(places.database) == "ok"


async def test_a_deleted_runtime_database_with_its_log_left_behind_is_restored(places: Places) -> None:
    writer = places.start_writer("host", "w")
    assert writer.stdout is not None
    told = {writer.stdout.readline().strip() for _ in range(10)}
    writer.kill()
    writer.communicate()
    places.database.unlink()
    async with places.host() as store:
        assert told <= await names(store)
        assert integrity(places.database) == "ok"


@pytest.mark.parametrize("fate", ["lost", "torn"])
async def test_without_its_sidecar_the_runtime_database_is_not_trusted(places: Places, fate: str) -> None:
    async with places.host() as store:
        await add(store, "a")
    sidecar = places.local / "pico.db.ship"
    sidecar.unlink() if fate == "lost" else sidecar.write_bytes(sidecar.read_bytes()[:100])
    _tamper(places.database)
    async with places.host() as store:
        assert await names(store) == {"a"}


async def test_a_database_changed_between_two_hosts_is_not_trusted(
    places: Places, caplog: pytest.LogCaptureFixture
) -> None:
    async with places.host() as store:
        await add(store, "a")
    _tamper(places.database)
    async with places.host() as store:
        assert await names(store) == {"a"}
    assert "doesn't continue" in caplog.text


@pytest.mark.parametrize("fate", ["gone", "emptied", "cut off", "old"])
async def test_a_runtime_database_that_lost_its_log_is_not_trusted(places: Places, fate: str) -> None:
    log = places.database.with_name("pico.db-wal")
    told, saved = await _killed(places), b""
    if fate == "old":
        saved, more = log.read_bytes(), await _killed(places, "again")
        told |= more
    if fate == "gone":
        log.unlink()
    else:
        log.write_bytes({"emptied": b"", "cut off": log.read_bytes()[:9000], "old": saved}[fate])
    async with places.host() as store:
        assert told <= await names(store)
        assert integrity(places.database) == "ok"


async def test_a_database_replaced_in_place_under_its_log_is_not_trusted(places: Places) -> None:
    told = await _killed(places)
    places.database.write_bytes(places.listing().snapshots[0].path.read_bytes())
    async with places.host() as store:
        assert told <= await names(store)
        assert integrity(places.database) == "ok"


async def test_a_tool_server_restores_too_when_it_finds_no_host_and_no_log(places: Places) -> None:
    told = await _killed(places)
    places.database.with_name("pico.db-wal").unlink()
    server = places.beside()
    assert told <= await names(server)
    await server.close()


async def test_a_log_removed_under_a_running_host_stops_its_promises(places: Places) -> None:
    store = places.open()
    await add(store, "a")
    places.database.with_name("pico.db-wal").unlink()
    with pytest.raises(NotDurable, match="restart the host"):
        await add(store, "b")
    with pytest.raises(NotDurable):
        await store.close()
    async with places.host() as again:
        assert "a" in await names(again)
        assert integrity(places.database) == "ok"


async def test_a_host_killed_while_it_ships_its_database_as_a_whole_begins_again(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The volume was set back; the local database is the only newer copy until the snapshot is there."""
    store = places.open()
    await add(store, "a")
    old = places.volume.with_name("old")
    shutil.copytree(places.volume, old)
    await add(store, "b")
    await store.close()
    shutil.rmtree(places.volume)
    old.rename(places.volume)
    with monkeypatch.context() as patch:
        patch.setattr(snapshot, "publish", _power_cut)
        with pytest.raises(PowerCut):
            places.open()
    async with places.host() as again:
        assert await names(again) == {"a", "b"}


class PowerCut(BaseException):
    """Ends a process at a chosen point, as far as the files are concerned."""


def _power_cut(*_: object) -> None:
    raise PowerCut


async def _killed(places: Places, prefix: str = "w") -> set[str]:
    """Run a host that writes, kill it, and return what it had acknowledged."""
    writer = places.start_writer("host", prefix)
    assert writer.stdout is not None
    told = {writer.stdout.readline().strip() for _ in range(10)}
    writer.kill()
    writer.communicate()
    return told


async def test_a_log_that_someone_else_reset_is_noticed(places: Places) -> None:
    async with places.host() as store:
        await add(store, "a")
        stranger = sqlite3.connect(places.database)
        stranger.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        stranger.close()
        await add(store, "b")
        saved = places.volume.with_name("saved")
        shutil.copytree(places.volume, saved)
    async with Places(saved, places.local.with_name("new")).host() as copy:
        assert await names(copy) == {"a", "b"}


def files_of(places: Places) -> dict[str, bytes]:
    """Return every file of the volume but the lock, which each start writes."""
    return {path.name: path.read_bytes() for path in places.volume.iterdir() if path.name != layout.LOCK}


def _tamper(database: Path) -> None:
    connection = sqlite3.connect(database)
    connection.execute(
        "INSERT INTO conversations (id, session_id, owner_id, created_at, last_activity)"
        " VALUES ('stranger', 's', 'stranger', 1, 1)"
    )
    connection.commit()
    connection.close()


def segment_paths(places: Places) -> list[Path]:
    return [places.volume / f"wal-{name}" for name in places.listing().segments]


def _last_segment(places: Places) -> Path:
    return segment_paths(places)[-1]


async def test_a_sound_volume_is_restored_without_a_warning(
    places: Places, caplog: pytest.LogCaptureFixture
) -> None:
    await grow(places)
    places.lose_local_disk()
    with caplog.at_level(logging.WARNING):
        async with places.host() as store:
            assert await names(store) == ALL
    assert [record for record in caplog.records if record.name.startswith("shared.store")] == []


async def test_directories_above_the_runtime_database_are_made(places: Places) -> None:
    below = Places(places.volume, places.local / "one" / "two")
    async with below.host() as store:
        await add(store, "a")
        assert await names(store) == {"a"}

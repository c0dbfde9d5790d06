"""One host on a volume."""

from __future__ import annotations

import multiprocessing
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from shared.errors import NotDurable, StoreLocked
from shared.store.volume import layout, lock
from shared.store.volume.lock import VolumeLock
from tests.store.places import Places, add, names


async def test_a_second_host_refuses_and_names_the_first(places: Places) -> None:
    elsewhere = Places(places.volume, places.local.with_name("elsewhere"))
    async with places.host() as store:
        with pytest.raises(StoreLocked, match=r"in use by host \(process \d+ on "):
            elsewhere.open("second")
        await add(store, "a")
    async with elsewhere.host() as second:
        assert await names(second) == {"a"}


async def test_a_killed_hosts_volume_is_taken_over_at_once(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = places.start_writer("host", "first")
    writer.kill()
    writer.communicate()
    monkeypatch.setattr(lock, "_watch", None)  # nobody has to be watched until he counts as dead
    async with places.host():
        holder = layout.holder(places.volume)
        assert holder is not None
        assert holder.pid == os.getpid()


def test_a_host_on_another_machine_counts_as_alive_while_its_heartbeat_moves(tmp_path: Path) -> None:
    VolumeLock.acquire(tmp_path, "far").release()
    beating = multiprocessing.get_context("spawn").Process(target=_beat, args=(tmp_path,))
    beating.start()
    try:
        while (found := layout.holder(tmp_path)) is None or found.beat == 0:
            assert beating.is_alive()
            time.sleep(0.01)
        with pytest.raises(StoreLocked, match="in use by far"):
            VolumeLock.acquire(tmp_path, "near", stale_s=5)
    finally:
        beating.kill()
        beating.join()


def test_a_host_on_another_machine_whose_heartbeat_stands_still_is_gone(tmp_path: Path) -> None:
    VolumeLock.acquire(tmp_path, "far").release()
    _pretend(tmp_path, beat=7)
    taken = VolumeLock.acquire(tmp_path, "near", stale_s=0.3)
    assert layout.holder(tmp_path) == replace(taken._mine)
    taken.release()


def test_every_taking_begins_a_new_era(tmp_path: Path) -> None:
    eras = []
    for _ in range(3):
        taken = VolumeLock.acquire(tmp_path, "host")
        eras.append(taken.era)
        taken.release()
    assert eras == [1, 2, 3]


async def test_an_overtaken_host_acknowledges_nothing_and_hurts_nothing(places: Places) -> None:
    first = places.open("first")
    await add(first, "a")
    _pretend(places.volume, released=True)
    _forget_kernel_lock(places)
    elsewhere = Places(places.volume, places.local.with_name("elsewhere"))
    second = elsewhere.open("second")
    await add(second, "b")
    with pytest.raises(NotDurable, match="Another host has taken STORE_DIR: second"):
        await add(first, "lost")
    assert not first.volume_ok()
    await add(second, "c")
    with pytest.raises(NotDurable):
        await first.close()
    await second.close()
    places.lose_local_disk()
    async with places.host() as third:
        assert await names(third) == {"a", "b", "c"}


def _pretend(volume: Path, **changes: object) -> None:
    """Rewrite the lock file as if a machine elsewhere had written it."""
    path = volume / layout.LOCK
    found = layout.holder(volume)
    assert found is not None
    fields = {name: getattr(found, name) for name in layout.Holder.__slots__}
    fields |= {"boot": "elsewhere", "released": False} | changes
    path.write_bytes(layout.seal(fields, layout.LOCK_BYTES))


def _forget_kernel_lock(places: Places) -> None:
    """Put a new file in the lock's place: the way a network file system without flock looks."""
    path = places.volume / layout.LOCK
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data)


def _beat(volume: Path) -> None:
    for beat in range(1, 10_000):
        _pretend(volume, beat=beat)
        time.sleep(0.05)

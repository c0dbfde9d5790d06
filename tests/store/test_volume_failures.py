"""A volume that can't be written: nothing is acknowledged, and it heals by itself."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest

from shared.errors import NotDurable, StoreError
from shared.store.sqlite.store import SqliteStore
from shared.store.volume import layout, operator
from tests.store.places import Places, add, integrity, names


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Places]:
    """A volume of two mebibytes that can be filled, made read-only, and taken away."""
    volume = tmp_path / "small"
    volume.mkdir()
    _mount("-t", "tmpfs", "-o", "size=2m,mode=700", "none", volume)
    try:
        yield Places(volume, tmp_path / "local")
    finally:
        subprocess.run(["umount", "-l", volume], check=True)


async def test_a_full_volume_refuses_until_there_is_room_again(small: Places) -> None:
    async with small.host() as store:
        await add(store, "a")
        filler = small.volume / "filler"
        _fill(filler)
        with pytest.raises(NotDurable, match="No space left on device"):
            await _add_much(store, "full")
        assert not store.volume_ok()
        with pytest.raises(NotDurable):
            await store.durable()
        filler.unlink()
        await add(store, "b")
        assert store.volume_ok()
    small.lose_local_disk()
    async with small.host() as store:
        assert {"a", "b"} <= await names(store)
        assert integrity(small.database) == "ok"


async def test_a_segment_that_somebody_cuts_takes_nothing_with_it(tmp_path: Path) -> None:
    places = Places(tmp_path / "volume", tmp_path / "local")
    places.volume.mkdir()
    async with places.host() as store:
        await add(store, "a")
        (segment,) = places.volume.glob("wal-*")
        os.truncate(segment, layout.HEAD + 100)
        await add(store, "b")
        assert operator.check(places.volume).conversations == 2
    places.lose_local_disk()
    async with places.host() as store:
        assert {"a", "b"} <= await names(store)


async def test_a_full_volume_heals_without_a_request(small: Places) -> None:
    async with small.host() as store:
        filler = small.volume / "filler"
        _fill(filler)
        with pytest.raises(NotDurable):
            await _add_much(store, "full")
        filler.unlink()
        with anyio.fail_after(60):
            while not store.volume_ok():
                await anyio.sleep(0.02)


async def test_a_read_only_volume_refuses_until_it_is_writable_again(places: Places) -> None:
    async with places.host() as store:
        await add(store, "a")
        with _read_only(places.volume):
            with pytest.raises(NotDurable, match="Read-only file system"):
                await add(store, "b")
            assert not store.volume_ok()
        await add(store, "c")
        assert store.volume_ok()
    places.lose_local_disk()
    async with places.host() as store:
        assert await names(store) == {"a", "b", "c"}


async def test_a_read_only_volume_stops_the_start_with_a_sentence(places: Places) -> None:
    async with places.host() as store:
        await add(store, "a")
    with _read_only(places.volume), pytest.raises(StoreError, match="Read-only file system"):
        places.open()


async def test_a_volume_that_goes_away_and_comes_back_is_used_again(places: Places) -> None:
    async with places.host() as store:
        await add(store, "a")
        away = places.volume.with_name("away")
        places.volume.rename(away)
        with pytest.raises(NotDurable):
            await add(store, "b")
        assert not store.volume_ok()
        # What an unmounted volume leaves is an empty directory: that isn't the volume.
        places.volume.mkdir()
        with pytest.raises(NotDurable):
            await add(store, "c")
        assert list(places.volume.iterdir()) == []
        places.volume.rmdir()
        away.rename(places.volume)
        await add(store, "d")
        assert store.volume_ok()
    places.lose_local_disk()
    async with places.host() as store:
        assert await names(store) == {"a", "b", "c", "d"}


async def test_a_refused_write_is_shipped_by_the_next_start(places: Places) -> None:
    store = places.open()
    await add(store, "a")
    away = places.volume.with_name("away")
    places.volume.rename(away)
    with pytest.raises(NotDurable):
        await add(store, "b")
    with pytest.raises(NotDurable):
        await store.close()
    away.rename(places.volume)
    async with places.host() as again:
        assert await names(again) == {"a", "b"}
    places.lose_local_disk()
    async with places.host() as again:
        assert await names(again) == {"a", "b"}


async def test_callers_that_wait_together_share_one_failure(places: Places) -> None:
    async with places.host() as store:
        away = places.volume.with_name("away")
        places.volume.rename(away)
        refused = 0

        async def try_it(number: int) -> None:
            nonlocal refused
            await store.conversations.create(f"c{number}", now=1)
            with pytest.raises(NotDurable):
                await store.durable()
            refused += 1

        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                for number in range(50):
                    tasks.start_soon(try_it, number)
        assert refused == 50
        away.rename(places.volume)


async def test_a_full_local_disk_refuses_the_write_with_a_sentence(small: Places) -> None:
    """The runtime database on the small disk, the volume on the big one."""
    swapped = Places(volume=small.local, local=small.volume)
    async with swapped.host() as store:
        await add(store, "a")
        filler = swapped.local / "filler"
        _fill(filler)
        with pytest.raises(NotDurable, match="local disk"):
            await _add_much(store, "full")
        filler.unlink()
        await add(store, "b")
        assert {"a", "b"} <= await names(store)


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        for size in (4096, 1):
            try:
                while file.write(b"\0" * size):
                    pass
            except OSError:
                continue


async def _add_much(store: SqliteStore, prefix: str) -> None:
    for number in range(50):
        await add(store, f"{prefix}{number}")


@contextmanager
def _read_only(volume: Path) -> Iterator[None]:
    """Lay a read-only file system with the same content over the volume."""
    copy = volume.with_name("copy")
    shutil.copytree(volume, copy)
    _mount("--bind", copy, volume)
    try:
        _mount("-o", "remount,bind,ro", volume)
        yield
    finally:
        subprocess.run(["umount", "-l", volume], check=True)


def _mount(*arguments: str | Path) -> None:
    mounted = subprocess.run(["mount", *arguments], check=False, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"needs to mount: {mounted.stderr}")

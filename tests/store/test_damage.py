"""A damaged volume or an unwell machine is never taken for an empty or a sound store."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.errors import (
    StoreDamaged,
    StoreEnvironment,
    StoreError,
    StoreForbidden,
    StoreLocked,
    StoreMismatch,
)
from shared.store import open_host_store
from shared.store.sqlite.store import SqliteStore
from shared.store.volume import chain, layout, operator, snapshot, wal
from shared.store.volume.opening import identity
from shared.usage_values import Usage
from shared.values import NewMessage, NewRun, RunEnd, RunState
from tests.examples import examples
from tests.store.damage import (
    ALL,
    Fault,
    Refusal,
    contents,
    faults,
    grow_generations,
    outlasts,
    refusals,
    survives,
)
from tests.store.places import Places, add, integrity, names
from tests.store.test_operator import picoclaw

quick = settings(max_examples=examples(100), suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="session")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return grow_generations(tmp_path_factory.mktemp("generations"))


@quick
@given(fault=faults)
def test_whatever_happens_to_a_file_nothing_is_lost_in_silence(grown: Path, fault: Fault) -> None:
    survives(grown, fault)


@quick
@given(refusal=refusals)
def test_whatever_call_fails_nothing_is_lost(grown: Path, refusal: Refusal) -> None:
    outlasts(grown, refusal)


async def live(places: Places, *conversations: str) -> None:
    """Have a host live for each conversation, with messages, and stop in good order."""
    for name in conversations:
        async with places.host() as store:
            await talk(store, name)


async def talk(store: SqliteStore, name: str, messages: int = 5) -> None:
    await store.conversations.create(name, now=1)
    for number in range(messages):
        question = NewMessage(f"{name}-{number}", "user", [{"type": "text", "text": name * 50}], name * 50)
        lease = await store.runs.begin(
            NewRun(f"{name}-r{number}", name, question, owner="host", now=1, lease_ms=60_000)
        )
        await store.durable()
        await store.runs.finish(lease, RunEnd(RunState.SUCCESS, {}, Usage(), "model"), [], [], 2)
    await store.durable()


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def segments(places: Places) -> list[Path]:
    return [layout.segment_path(places.volume, name) for name in places.listing().segments]


async def test_a_flipped_byte_in_a_segment_is_named_and_nothing_works_on_it(
    places: Places, tmp_path: Path
) -> None:
    await live(places, "a", "b", "c", "d")
    victim = segments(places)[1]
    at = victim.stat().st_size // 2
    flip(victim, at)
    before = contents(places.volume)
    places.lose_local_disk()
    with pytest.raises(StoreDamaged, match=f"{victim.name} is damaged at byte") as refused:
        places.open()
    place = int(str(refused.value).split("at byte ")[1].split(".")[0])
    assert at - 4096 - wal.FRAME.size < place <= at
    shown = picoclaw(places, "check")
    assert shown.returncode == 1
    assert f"{victim} is damaged at byte {place}" in shown.stdout
    assert "4 conversations can be salvaged whole" in shown.stdout
    for command in (["backup", tmp_path / "backup.db"], ["compact"], ["export"]):
        refused_too = picoclaw(places, *command)
        assert refused_too.returncode == 1, command
        assert f"{victim.name} is damaged" in refused_too.stderr
        assert "Traceback" not in refused_too.stderr
    assert not (tmp_path / "backup.db").exists()
    assert contents(places.volume) == before


async def test_a_host_on_a_damaged_volume_ends_with_2_and_the_sentence(places: Places) -> None:
    await live(places, "a", "b")
    flip(segments(places)[0], 3000)
    places.lose_local_disk()
    environment = {
        "PATH": os.environ["PATH"],
        "API_TOKEN": "a-token-of-these-tests",
        "PICOCLAW_HOME": str(places.local.with_name("home")),
        "STORE_DIR": str(places.volume),
        "LOCAL_DB_PATH": str(places.database),
        "PORT": "0",
    }
    program = "from host.cli import main; main()"
    ended = subprocess.run(
        [sys.executable, "-c", program, "serve"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 2, ended.stderr
    said = json.loads((ended.stdout + ended.stderr).splitlines()[-1])["message"]
    assert f"{segments(places)[0]} is damaged at byte" in said
    assert said.index("store salvage") < said.index("store restore")


@pytest.mark.parametrize("at", [0, 16, 17, 40, 110])
async def test_a_damaged_first_page_hides_no_conversation(places: Places, tmp_path: Path, at: int) -> None:
    await live(places, "a", "b")
    backup = tmp_path / "backup.db"
    operator.backup(places.volume, backup)
    flip(backup, at)
    found = operator.save_what_can_be_read(backup, tmp_path / "salvaged.db")
    assert (found.whole, found.known) == (2, 2)


async def test_what_is_salvaged_of_a_volume_can_be_restored(places: Places, tmp_path: Path) -> None:
    await live(places, "a", "b", "c", "d")
    victim, rest = segments(places)[1], segments(places)[2]
    victim.write_bytes(victim.read_bytes()[: layout.HEAD + 5000])
    flip(rest, 100)
    before = contents(places.volume)
    places.lose_local_disk()
    salvaged = tmp_path / "salvaged.db"
    shown = picoclaw(places, "salvage", salvaged, "--json")
    assert shown.returncode == 0, shown.stderr
    found = json.loads(shown.stdout)
    assert found["whole"] + len(found["lost"]) == found["known"]
    assert contents(places.volume) == before
    assert picoclaw(places, "check", salvaged).returncode == 0
    assert picoclaw(places, "restore", salvaged).returncode == 0
    async with places.host() as store:
        assert len(await names(store)) == found["known"]


async def test_a_damaged_database_gives_its_whole_conversations_and_names_the_others(
    places: Places, tmp_path: Path
) -> None:
    async with places.host() as store:
        for number in range(30):
            await talk(store, f"c{number:02d}")
    backup = tmp_path / "backup.db"
    operator.backup(places.volume, backup)
    content = backup.read_bytes()
    at = content.index(b"c17c17c17") // 4096 * 4096
    backup.write_bytes(content[:at] + b"\xff" * 4096 + content[at + 4096 :])
    before = backup.read_bytes()
    for command in ("check", "restore"):
        refused = picoclaw(places, command, backup)
        assert refused.returncode == 1
        assert "has another checksum than it carries" in refused.stderr
    shown = picoclaw(places, "salvage", tmp_path / "salvaged.db", "--from", backup, "--json")
    assert shown.returncode == 0, shown.stderr
    found = json.loads(shown.stdout)
    assert found["known"] == 30
    assert 20 <= found["whole"] < 30
    assert all("messages can be read" in loss for loss in found["lost"])
    assert backup.read_bytes() == before
    assert operator.check_backup(tmp_path / "salvaged.db").faults == []
    os.mkfifo(tmp_path / "pipe")
    for nothing in ("pipe", "missing"):
        shown = picoclaw(places, "salvage", tmp_path / "other.db", "--from", tmp_path / nothing)
        assert (shown.returncode, "There is no file and no directory at" in shown.stderr) == (1, True)


@pytest.mark.parametrize("fate", ["removed", "cut", "emptied"])
async def test_the_newest_segment_is_missed_after_a_stop_in_good_order(places: Places, fate: str) -> None:
    await live(places, "a", "b")
    newest = segments(places)[-1]
    if fate == "removed":
        newest.unlink()
    else:
        os.truncate(newest, newest.stat().st_size - 1 if fate == "cut" else 0)
    places.lose_local_disk()
    with pytest.raises(StoreDamaged, match=newest.name):
        places.open()


def test_a_killed_hosts_newest_segment_is_missed_below_what_it_says_itself(places: Places) -> None:
    writer = places.start_writer("host", "w")
    assert writer.stdout is not None
    for _ in range(20):
        writer.stdout.readline()
    writer.kill()
    writer.communicate()
    newest = segments(places)[-1]
    os.truncate(newest, newest.stat().st_size // 2)
    places.lose_local_disk()
    with pytest.raises(StoreDamaged, match=rf"{newest.name} is (cut off|damaged) at byte"):
        places.open()


@given(place=st.floats(0, 1), bit=st.integers(0, 7))
@settings(max_examples=examples(50))
def test_no_bit_of_a_backup_changes_unseen(grown: Path, place: float, bit: int) -> None:
    with tempfile.TemporaryDirectory(prefix="damage-") as folder:
        backup = Path(folder, "backup.db")
        operator.backup(grown, backup)
        Fault("flip", 0, 0, place, bit).happen(Path(folder))
        with pytest.raises(StoreError):
            operator.check_backup(backup)
        with pytest.raises(StoreError):
            operator.restore(Path(folder, "new volume"), backup)
        assert not Path(folder, "new volume").exists()


async def test_too_small_a_tmpdir_ends_each_command_and_removes_nothing(
    places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with places.host() as store:
        for number in range(40):
            await store.conversations.create(f"c{number}", now=1)
            await store.outbound.add(f"c{number}", f"c{number}", "x" * 30_000, "agent", 1)
    before = contents(places.volume)
    with small_disk(tmp_path / "tmp", "1m") as small:
        monkeypatch.setenv("TMPDIR", str(small))
        for command in (["check"], ["backup", tmp_path / "b.db"], ["export"], ["compact"]):
            shown = picoclaw(places, *command)
            assert shown.returncode == 1, command
            assert f"no room in {small}" in shown.stderr
            assert "bytes are wanted" in shown.stderr
            assert list(small.iterdir()) == []
    assert contents(places.volume) == before
    assert not (tmp_path / "b.db").exists()


async def test_a_disk_without_a_free_inode_is_named_as_such(places: Places, tmp_path: Path) -> None:
    await live(places, "a")
    with small_disk(tmp_path / "small", "1m,nr_inodes=3") as small:
        for number in range(2):
            (small / f"taken{number}").touch()
        with pytest.raises(StoreEnvironment, match=f"LOCAL_DB_PATH: no file can be made in {small}.* inodes"):
            Places(places.volume, small).open()
        with pytest.raises(StoreEnvironment, match=r"the new file: no file can be made in .* inodes"):
            operator.backup(places.volume, small / "backup.db")
    async with places.host() as store:
        assert await names(store) == {"a"}


async def test_too_small_a_local_disk_refuses_and_a_larger_one_has_everything(
    places: Places, tmp_path: Path
) -> None:
    async with places.host() as store:
        for number in range(40):
            await store.conversations.create(f"c{number}", now=1)
            await store.outbound.add(f"c{number}", f"c{number}", "x" * 30_000, "agent", 1)
            await store.durable()
    with small_disk(tmp_path / "small", "1m") as small:
        with pytest.raises(StoreEnvironment, match=r"LOCAL_DB_PATH: no room in .* bytes are wanted"):
            Places(places.volume, small).open()
        assert not list(small.glob("*.restored*"))
    places.lose_local_disk()
    async with places.host() as store:
        assert len(await names(store)) == 40


@pytest.mark.parametrize("left", range(0, 40_000, 8_000))
async def test_a_full_local_disk_is_not_taken_for_damage(places: Places, tmp_path: Path, left: int) -> None:
    await live(places, "a")
    with small_disk(tmp_path / "small", "1m") as small:
        room = os.statvfs(small)
        (small / "filler").write_bytes(bytes(room.f_bavail * room.f_frsize - left))
        with pytest.raises(StoreEnvironment, match=f"LOCAL_DB_PATH: no room in {small}"):
            Places(places.volume, small).open()
    places.lose_local_disk()
    async with places.host() as store:
        assert await names(store) == {"a"}


async def test_what_was_told_while_the_volume_was_unmounted_is_there_when_it_comes_back(
    places: Places,
) -> None:
    await live(places, "a", "b")
    away = places.volume.with_name("away")
    places.volume.rename(away)
    places.volume.mkdir()
    async with places.host() as store:
        await add(store, "c")
    shutil.rmtree(places.volume)
    away.rename(places.volume)
    async with places.host() as store:
        assert await names(store) == {"a", "b", "c"}
    places.lose_local_disk()
    async with places.host() as store:
        assert await names(store) == {"a", "b", "c"}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give files away")
def test_whose_a_file_is_and_which_chown_helps_is_said(grown: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="damage-") as folder:
        places = Places(Path(folder, "volume"), Path(folder, "local"))
        shutil.copytree(grown, places.volume)
        places.local.mkdir()
        Path(folder).chmod(0o755)
        for path in (places.local, places.volume, *places.volume.iterdir()):
            os.chown(path, 1000, 1000)
        theirs = places.listing().snapshots[-1].path
        os.chown(theirs, 0, 0)
        os.setegid(1000)
        os.seteuid(1000)
        try:
            with pytest.raises(StoreForbidden) as refused:
                places.open()
        finally:
            os.seteuid(0)
            os.setegid(0)
        assert f"{theirs} belongs to uid 0" in str(refused.value)
        assert f"`chown 1000:1000 {theirs}`" in str(refused.value)
        assert refused.value.hopeless


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give files away")
async def test_what_root_makes_on_the_volume_gets_the_directorys_owner(places: Places) -> None:
    await live(places, "a")
    os.chown(places.volume, 1000, 1001)
    assert picoclaw(places, "compact").returncode == 0
    made = [path.stat() for path in places.volume.glob("snapshot-*")]
    assert [(each.st_uid, each.st_gid) for each in made] == [(1000, 1001)]


async def test_a_new_store_says_so_and_the_next_start_does_not(places: Places) -> None:
    async with places.host() as store:
        assert store.origin is not None
        assert store.origin.new
        first = store.origin.id
    async with places.host() as store:
        assert store.origin == (first, False)


async def test_a_pinned_store_is_the_only_one_that_will_do(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    await live(places, "a")
    there = identity(places.volume)
    assert there is not None
    empty = Places(places.volume.with_name("empty"), places.local.with_name("other"))
    empty.volume.mkdir()
    for wrong, store_id in ((empty, there), (places, "f" * 32)):
        with pytest.raises(StoreMismatch, match=store_id):
            open_host_store(store_dir=wrong.volume, local_db=wrong.database, owner="host", store_id=store_id)
        monkeypatch.setenv("STORE_ID", store_id)
        shown = picoclaw(wrong, "check")
        assert shown.returncode == 2
        assert f"STORE_ID names {store_id}" in shown.stderr
    assert list(empty.volume.iterdir()) == []
    await open_host_store(
        store_dir=places.volume, local_db=places.database, owner="host", store_id=there
    ).close()


async def test_a_second_volume_on_the_same_local_database_is_refused_by_name(places: Places) -> None:
    other = Places(places.volume.with_name("other"), places.local)
    async with places.host() as store:
        await add(store, "a")
        with pytest.raises(StoreLocked, match=r"LOCAL_DB_PATH .* is in use by host \(process \d+, STORE_DIR"):
            other.open("second")
    with pytest.raises(StoreMismatch, match="is empty, and LOCAL_DB_PATH"):
        other.open("second")
    async with places.host() as store:
        assert await names(store) == {"a"}


async def test_a_link_to_the_local_database_is_the_same_database(places: Places, tmp_path: Path) -> None:
    linked = Places(places.volume.with_name("other"), tmp_path / "links")
    linked.local.mkdir()
    linked.database.symlink_to(places.database)
    async with places.host() as store:
        await add(store, "a")
        with pytest.raises(StoreLocked, match=f"LOCAL_DB_PATH {places.database} is in use by host"):
            linked.open("second")
        linked.database.unlink()
        linked.database.hardlink_to(places.database)
        with pytest.raises(StoreLocked, match="second name"):
            linked.open("second")
        await add(store, "b")
    linked.database.unlink()
    linked.database.symlink_to(places.database)
    async with Places(places.volume, linked.local).host() as store:
        assert await names(store) == {"a", "b"}
    assert not (linked.local / "pico.db-wal").exists()
    assert integrity(places.database) == "ok"


async def test_a_volume_emptied_but_for_its_lock_is_no_new_store(places: Places) -> None:
    await live(places, "a")
    for path in places.volume.iterdir():
        if path.name != layout.LOCK:
            path.unlink()
    places.lose_local_disk()
    with pytest.raises(StoreDamaged, match="all its snapshots and segments are missing"):
        places.open()


async def test_nothing_older_goes_while_what_stays_is_damaged(places: Places, grown: Path) -> None:
    shutil.copytree(grown, places.volume)
    for damaged in (places.listing().snapshots[0], places.listing().snapshots[-2]):
        damaged.path.write_bytes(b"damaged")
    before = {path.name for path in places.volume.iterdir()}
    async with places.host():
        by = layout.holder(places.volume)
        assert by is not None
        chain.clean(places.volume, by.token)
    assert before <= {path.name for path in places.volume.iterdir()}
    assert picoclaw(places, "compact").returncode == 1
    assert before <= {path.name for path in places.volume.iterdir()}


async def test_a_volume_of_an_earlier_program_is_opened(places: Places, grown: Path) -> None:
    shutil.copytree(grown, places.volume)
    for name in places.listing().segments:
        path = layout.segment_path(places.volume, name)
        found = layout.read_segment(places.volume, name)
        assert found is not None
        head = layout.seal({"previous": layout.numbers(found.previous)}, layout.HEAD)
        path.write_bytes(head + path.read_bytes()[layout.HEAD :])
    for each in places.listing().snapshots:
        crc = snapshot.checksum(each.path)
        each.path.rename(layout.snapshot_path(places.volume, each.id, crc))
    by = layout.holder(places.volume)
    assert by is not None
    fields = {name: getattr(by, name) for name in layout.Holder.__slots__ if name != "end"}
    (places.volume / layout.LOCK).write_bytes(layout.seal(fields, layout.LOCK_BYTES))
    assert operator.check(places.volume).faults == []
    async with places.host() as store:
        assert await names(store) == ALL


@contextmanager
def small_disk(path: Path, size: str) -> Iterator[Path]:
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "none", path],
        check=False,
        capture_output=True,
    )
    if mounted.returncode:
        pytest.skip("needs to mount")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


async def test_what_was_written_behind_a_damaged_place_of_a_segment_is_salvaged(
    places: Places, tmp_path: Path
) -> None:
    async with places.host() as store:
        for number in range(6):
            await talk(store, f"c{number}")
    *_, victim = segments(places)
    flip(victim, layout.HEAD + wal.HEADER.size + wal.FRAME.size + 100)
    salvaged = tmp_path / "salvaged.db"
    shown = picoclaw(places, "salvage", salvaged, "--json")
    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout)["whole"] == 6


async def test_what_later_segments_moved_into_a_lost_one_is_salvaged_from_before_it(
    places: Places, tmp_path: Path
) -> None:
    for life, conversations in enumerate((2, 2, 60, 60)):
        async with places.host() as store:
            for number in range(conversations):
                await talk(store, f"c{life}-{number}", 1)
    victim = segments(places)[2]
    with victim.open("r+b") as file:
        file.seek(layout.HEAD + wal.HEADER.size)
        file.write(bytes(victim.stat().st_size - file.tell()))
    shown = picoclaw(places, "salvage", tmp_path / "salvaged.db", "--json")
    assert shown.returncode == 0, shown.stderr
    with closing(sqlite3.connect(tmp_path / "salvaged.db")) as salvaged:
        texts = dict(salvaged.execute("SELECT conversation_id, text FROM messages"))
    before = ["c0-0", "c0-1", "c1-0", "c1-1"]
    assert [texts.get(name) for name in before] == [name * 50 for name in before]


async def test_zeros_in_the_middle_of_a_segment_hide_nothing_behind_them(
    places: Places, tmp_path: Path
) -> None:
    async with places.host() as store:
        for number in range(6):
            await talk(store, f"c{number}")
    *_, victim = segments(places)
    frame = wal.FRAME.size + 4096
    with victim.open("r+b") as file:
        file.seek(layout.HEAD + wal.HEADER.size + frame)
        file.write(bytes(2 * frame))
    salvaged = tmp_path / "salvaged.db"
    shown = picoclaw(places, "salvage", salvaged, "--json")
    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout)["whole"] == 6


async def test_what_is_no_file_is_named_and_no_disk_is_blamed_for_it(
    places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    await live(places, "a")
    places.lose_local_disk()
    foreign = places.volume / "wal-000009-00000009"
    foreign.mkdir()
    with pytest.raises(StoreEnvironment, match=f"^{foreign} cannot be used: Is a directory"):
        places.open()
    shown = picoclaw(places, "check")
    assert shown.returncode == 1
    assert f"{foreign} cannot be used: Is a directory" in shown.stderr
    assert "TMPDIR" not in shown.stderr


async def test_what_was_deleted_does_not_come_back_by_salvaging_a_sound_volume(
    places: Places, tmp_path: Path
) -> None:
    await live(places, "a", "b")
    operator.compact(places.volume)
    async with places.host() as store:
        await store.conversations.delete("a")
        await store.durable()
    shown = picoclaw(places, "salvage", tmp_path / "salvaged.db", "--json")
    assert shown.returncode == 0, shown.stderr
    assert (json.loads(shown.stdout)["whole"], json.loads(shown.stdout)["known"]) == (1, 1)

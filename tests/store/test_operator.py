"""``picoclaw store``: looking at a volume, copying it, putting a copy back."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from shared.approval_values import Answer, NewApproval
from shared.errors import StoreEnvironment, StoreError, StoreLocked, StoreVersion
from shared.store.sqlite.store import SCHEMA_VERSION
from shared.store.volume import operator
from shared.values import RunState
from tests.contract.store.making import T0, a_run, an_end
from tests.store.places import Places, add, integrity, names
from tests.store.test_deleting import fill, found_in
from tests.warm_host import warm


def picoclaw(places: Places, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    with warm():
        return subprocess.run(
            [sys.executable, "-m", "host.cli", "store", *arguments, "--store-dir", places.volume],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


async def test_a_sound_volume_is_checked_beside_a_running_host(places: Places) -> None:
    async with places.host() as store:
        await fill(store)
        report = operator.check(places.volume)
        beside = picoclaw(places, "check", "--json")
        assert "not the file at LOCAL_DB_PATH" in json.loads(beside.stdout)["checked"]
        assert "not the file at LOCAL_DB_PATH" in picoclaw(places, "check").stdout
    assert report.faults == []
    assert report.holder is not None
    assert (report.conversations, report.messages, report.tasks) == (1, 1, 0)
    shown = picoclaw(places, "check", "--json")
    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout)["holder"] is None
    assert json.loads(shown.stdout)["checked"] == "everything"
    assert "Everything is sound" in picoclaw(places, "check").stdout


async def test_what_has_a_files_name_and_is_none_is_named_by_every_command_and_the_start(
    places: Places, tmp_path: Path
) -> None:
    async with places.host() as store:
        await add(store, "a")
    named = [*places.volume.iterdir(), *(Path(f"{places.database}.{each}") for each in ("host", "reserve"))]
    for path in named:
        aside = path.rename(tmp_path / "aside") if path.exists() else None
        os.mkfifo(path)
        said = f"{path} cannot be used: It is not a file"
        with pytest.raises(StoreEnvironment, match=said):
            async with places.host():
                pass
        if path.parent == places.volume:
            for command in (["check"], ["compact"], ["rollback"], ["salvage", tmp_path / "new"]):
                shown = picoclaw(places, *command)
                assert (shown.returncode, said in shown.stderr.replace("\n", " ")) == (1, True), shown
        path.unlink()
        if aside is not None:
            aside.rename(path)
    assert operator.check(places.volume).conversations == 1


async def test_a_damaged_snapshot_is_a_fault(places: Places) -> None:
    async with places.host() as store:
        await add(store, "a")
    snapshot = places.listing().snapshots[-1].path
    snapshot.write_bytes(snapshot.read_bytes()[:-1] + b"x")
    shown = picoclaw(places, "check")
    assert shown.returncode == 1
    assert f"{snapshot.name} is damaged" in shown.stdout


async def test_a_backup_of_a_running_host_has_everything_acknowledged(places: Places, tmp_path: Path) -> None:
    target = tmp_path / "backup.db"
    async with places.host() as store:
        await add(store, "a", "b")
        assert operator.backup(places.volume, target) == target.stat().st_size
        with pytest.raises(StoreError, match="exists already"):
            operator.backup(places.volume, target)
    assert integrity(target) == "ok"
    connection = sqlite3.connect(target)
    assert connection.execute("SELECT id FROM conversations ORDER BY id").fetchall() == [("a",), ("b",)]
    connection.close()


@pytest.mark.parametrize("command", ["backup", "salvage"])
async def test_a_new_file_has_a_name(places: Places, command: str) -> None:
    async with places.host() as store:
        await add(store, "a")
    shown = picoclaw(places, command, "-")
    assert (shown.returncode, "standard output" in shown.stderr, Path("-").exists()) == (2, True, False)


@pytest.mark.parametrize("local_disk", ["kept", "lost"])
async def test_a_restored_backup_wins_over_what_was_there(
    places: Places, tmp_path: Path, local_disk: str
) -> None:
    target = tmp_path / "backup.db"
    async with places.host() as store:
        await add(store, "a")
        operator.backup(places.volume, target)
        await add(store, "b")
        with pytest.raises(StoreLocked, match="in use by host"):
            operator.restore(places.volume, target)
    if local_disk == "lost":
        places.lose_local_disk()
    shown = picoclaw(places, "restore", target)
    assert shown.returncode == 0, shown.stderr
    async with places.host() as store:
        assert await names(store) == {"a"}
        await add(store, "c")
    places.lose_local_disk()
    async with places.host() as store:
        assert await names(store) == {"a", "c"}


async def test_what_people_allowed_before_a_backup_does_not_run_after_its_restore(
    places: Places, tmp_path: Path
) -> None:
    request = NewApproval("appr-1", "approval", "exec", {"command": "pay"}, "call-1")
    async with places.host() as store:
        await add(store, "a")
        lease = await store.runs.begin(a_run("1", "a"))
        end = an_end(RunState.PAUSED, code="approval", requests=[request])
        await store.runs.finish(lease, end, [], [], T0)
        answer = Answer("allow", {}, input_sha256=request.input_sha256)
        await store.approvals.decide("appr-1", None, answer, T0)
        await store.durable()
        assert len(await store.approvals.ready(1)) == 1
        operator.backup(places.volume, tmp_path / "backup.db")
    operator.restore(places.volume, tmp_path / "backup.db")
    async with places.host() as store:
        assert await store.approvals.ready(1) == []
        (left,) = await store.approvals.open_step("a")
        assert (left.status, left.result()["is_error"]) == ("interrupted", True)
        assert (await store.runs.begin(a_run("2", "a", message=None))).step


async def test_what_was_cut_off_before_a_backup_does_not_begin_again_after_its_restore(
    places: Places, tmp_path: Path
) -> None:
    async with places.host() as store:
        await add(store, "a")
        await store.runs.begin(replace(a_run("1", "a"), background=True, again=3, asked="{}"))
        await store.runs.recover(T0, all_but="another")
        assert [run.id for run in await store.runs.to_begin_again(5)] == ["run-1"]
        await store.durable()
        operator.backup(places.volume, tmp_path / "backup.db")
    operator.restore(places.volume, tmp_path / "backup.db")
    async with places.host() as store:
        assert await store.runs.to_begin_again(5) == []


async def test_a_backup_moves_to_a_new_volume(places: Places, tmp_path: Path) -> None:
    async with places.host() as store:
        await add(store, "a")
    operator.backup(places.volume, tmp_path / "backup.db")
    new = Places(tmp_path / "new volume", tmp_path / "new local")
    operator.restore(new.volume, tmp_path / "backup.db")
    async with new.host() as store:
        assert await names(store) == {"a"}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(None, "is no file"), (b"junk" * 2000, "is no sound backup"), (b"", "is no backup of a store")],
)
async def test_what_is_no_backup_is_refused_and_changes_nothing(
    places: Places, tmp_path: Path, content: bytes | None, sentence: str
) -> None:
    async with places.host() as store:
        await add(store, "a")
    source = tmp_path / "source.db"
    if content is not None:
        source.write_bytes(content)
    before = sorted(path.name for path in places.volume.iterdir())
    with pytest.raises(StoreError, match=sentence):
        operator.restore(places.volume, source)
    assert sorted(path.name for path in places.volume.iterdir()) == before


def test_a_database_of_the_right_version_without_the_tables_is_no_backup(
    places: Places, tmp_path: Path
) -> None:
    source = tmp_path / "blank.db"
    connection = sqlite3.connect(source)
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    connection.close()
    with pytest.raises(StoreError, match="is no backup of a store"):
        operator.restore(places.volume, source)


def test_a_newer_programs_backup_is_refused(places: Places, tmp_path: Path) -> None:
    source = tmp_path / "newer.db"
    connection = sqlite3.connect(source)
    connection.execute("PRAGMA user_version = 9999")
    connection.close()
    with pytest.raises(StoreVersion, match="9999"):
        operator.restore(places.volume, source)


async def test_folding_by_hand_leaves_no_deleted_byte(places: Places) -> None:
    async with places.host() as store:
        await fill(store)
        await add(store, "kept")
        await store.conversations.delete("c")
        await store.durable()
        with pytest.raises(StoreLocked):
            operator.compact(places.volume)
    assert found_in(places.volume)
    operator.compact(places.volume)
    assert not found_in(places.volume)
    async with places.host() as store:
        assert await names(store) == {"kept"}


async def test_an_export_has_every_row_as_a_line_of_json(places: Places) -> None:
    async with places.host() as store:
        await fill(store)
    shown = picoclaw(places, "export")
    assert shown.returncode == 0, shown.stderr
    rows = [json.loads(line) for line in shown.stdout.splitlines()]
    tables = [row["table"] for row in rows]
    assert tables[:5] == ["conversations", "messages", "runs", "run_events", "outbound_messages"]
    assert not operator.NOT_EXPORTED & set(tables)
    assert rows[1]["blocks"][0]["type"] == "text"


def test_an_empty_place_has_no_store(places: Places) -> None:
    with pytest.raises(StoreError, match="There is no store"):
        operator.check(places.volume)
    assert "There is no store" in picoclaw(places, "export").stderr

"""``picoclaw store`` where DATABASE_URL is set: on that database or not at all, never on an old volume."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import anyio
import pytest

from shared.store import open_store
from shared.store.postgres.database import Place
from shared.store.postgres.opening import open_shared_store
from tests.cluster.test_copying import fill
from tests.postgres import execute, fresh_database
from tests.warm_host import warm

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def old_volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    volume = tmp_path_factory.mktemp("volume")

    async def make() -> None:
        store = open_store(tmp_path_factory.mktemp("first") / "store.db", volume)
        await store.conversations.create("before the move", 1)
        await store.close()

    with ThreadPoolExecutor(1) as threads:
        threads.submit(lambda: anyio.run(make)).result()
    return volume


def picoclaw(
    home: Path, volume: Path, url: str, *arguments: str | Path, path: str = os.environ["PATH"]
) -> subprocess.CompletedProcess[str]:
    with warm():
        return subprocess.run(
            [sys.executable, "-m", "host.cli", "store", *arguments],
            env={"PATH": path, "HOME": str(home), "DATABASE_URL": url, "STORE_DIR": str(volume)},
            cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip


async def test_a_backup_is_the_databases_and_can_be_restored(
    database: str, old_volume: Path, tmp_path: Path
) -> None:
    store = await open_shared_store(Place(database))
    await fill(store, 3)
    counted = await store.counts()
    await store.close()
    file = tmp_path / "backup"
    checked = picoclaw(tmp_path, old_volume, database, "check")
    assert (checked.returncode, "can be read" in checked.stdout) == (0, True), checked.stderr
    made = picoclaw(tmp_path, old_volume, database, "backup", file)
    assert made.returncode == 0, made.stderr
    assert file.stat().st_mode & 0o777 == 0o600
    assert picoclaw(tmp_path, old_volume, database, "backup", file).returncode == 1
    for command in (["check"], ["restore", "--store-dir", old_volume]):
        told = picoclaw(tmp_path, old_volume, database, *command, file)
        assert (told.returncode, "is a dump of a PostgreSQL" in told.stderr) == (1, True), told.stderr
    with fresh_database() as again:
        subprocess.run(
            ["pg_restore", "--single-transaction", "--no-owner", f"--dbname={again}", file],
            check=True,
            timeout=60,
        )
        store = await open_shared_store(Place(again))
        assert await store.counts() == counted
        assert await store.conversations.get("c2") is not None
        await store.close()


async def test_the_command_that_is_named_restores_a_backup_on_a_server_without_its_roles(
    old_volume: Path, tmp_path: Path
) -> None:
    file = tmp_path / "backup"
    with fresh_database() as lost:
        store = await open_shared_store(Place(lost))
        await fill(store, 3)
        assert store.tools is not None
        role = urlsplit(store.tools.url).username
        await store.close()
        assert picoclaw(tmp_path, old_volume, lost, "backup", file).returncode == 0
    await execute(f'DROP ROLE "{role}"')
    with fresh_database() as new:
        told = picoclaw(tmp_path, old_volume, new, "restore", file).stderr
        command = " ".join(told.partition("Run: ")[2].partition(" (--store-dir")[0].split())
        subprocess.run(["sh", "-c", command], env={**os.environ, "DATABASE_URL": new}, check=True, timeout=60)
        store = await open_shared_store(Place(new))
        assert await store.conversations.get("c2") is not None
        await store.close()


def test_an_address_may_be_parameters_alone_and_no_command_line_has_its_password(
    database: str, old_volume: Path, tmp_path: Path
) -> None:
    parts = urlsplit(database)
    place = f"host={parts.hostname}&port={parts.port}&user={parts.username}"
    told = tmp_path / "pg_dump"
    told.write_text(f'#!/bin/sh\necho "$@" >{tmp_path}/said\nexec {shutil.which("pg_dump")} "$@"\n')
    told.chmod(0o700)
    url = f"postgresql://{parts.path}?{place}&password={parts.password}"
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    checked = picoclaw(tmp_path, old_volume, url, "check", path=path)
    assert checked.returncode == 0, checked.stderr
    said = (tmp_path / "said").read_text()
    assert place in said
    assert str(parts.password) not in said


@pytest.mark.parametrize(
    "command", [("restore", "x"), ("rollback",), ("compact",), ("export",), ("salvage", "x")]
)
def test_what_is_about_a_volume_is_refused_with_what_does_the_same(
    database: str, old_volume: Path, tmp_path: Path, command: tuple[str, ...]
) -> None:
    before = sorted((path.name, path.read_bytes()) for path in old_volume.iterdir())
    refused = picoclaw(tmp_path, old_volume, database, *command)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "DATABASE_URL" in refused.stderr
    assert "Run: " in refused.stderr
    assert sorted((path.name, path.read_bytes()) for path in old_volume.iterdir()) == before


@pytest.mark.parametrize("command", ["check", "backup"])
def test_without_pg_dump_its_command_is_named(
    database: str, old_volume: Path, tmp_path: Path, command: str
) -> None:
    file = [tmp_path / "backup"] if command == "backup" else []
    refused = picoclaw(tmp_path, old_volume, database, command, *file, path=str(tmp_path))
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "pg_dump" in refused.stderr
    assert list(tmp_path.glob("backup*")) == []


def test_a_database_that_cannot_be_read_is_no_backup(database: str, old_volume: Path, tmp_path: Path) -> None:
    broken = picoclaw(tmp_path, old_volume, f"{database}_gone", "backup", tmp_path / "backup")
    assert broken.returncode == 1
    assert "does not exist" in broken.stderr
    assert list(tmp_path.glob("backup*")) == []


def test_a_volume_that_is_named_is_meant(database: str, old_volume: Path, tmp_path: Path) -> None:
    exported = picoclaw(tmp_path, old_volume, database, "export", "--store-dir", old_volume)
    assert "before the move" in exported.stdout


async def test_the_doctor_asks_the_database_that_the_host_would_use(database: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    unused = {"STORE_DIR": str(tmp_path / "file/store")}

    def said(url: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "host.cli", "doctor"],
            env={**unused, "PATH": os.environ["PATH"], "HOME": str(tmp_path), "DATABASE_URL": url},
            cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        return done.stdout

    answered = said(database)
    assert "DATABASE_URL answers: PostgreSQL" in answered
    assert unused["STORE_DIR"] not in answered
    absent = said(f"{database}_that_is_not_there")
    assert "does not exist" in absent
    assert "DATABASE_URL answers" not in absent

"""A database of every earlier version is brought up to date; one of a newer version is refused."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from shared.errors import StoreError, StoreVersion
from shared.store.sqlite import migrations
from shared.store.sqlite.engine import connect
from shared.store.sqlite.migrations import SCHEMA_VERSION, STEPS, migrate
from shared.store.sqlite.store import SqliteStore
from tests.store.places import Places, add, names

Shape = list[tuple[str, str, str]]


def schema(connection: sqlite3.Connection) -> Shape:
    found = connection.execute("SELECT type, name, sql FROM sqlite_schema WHERE sql <> '' ORDER BY 1, 2")
    return [tuple(row) for row in found]


def database_of_version(path: Path, version: int, monkeypatch: pytest.MonkeyPatch) -> sqlite3.Connection:
    """Make a database as the program of that version made it, with a conversation in it."""
    connection = connect(path, busy_ms=1000)
    with monkeypatch.context() as patch:
        patch.setattr(migrations, "STEPS", STEPS[:version])
        patch.setattr(migrations, "SCHEMA_VERSION", version)
        migrate(connection)
    connection.execute(
        "INSERT INTO conversations (id, session_id, owner_id, created_at, last_activity)"
        " VALUES ('old', 's', 'old', 1, 1)"
    )
    return connection


@pytest.mark.parametrize("version", range(1, SCHEMA_VERSION + 1))
async def test_every_earlier_version_becomes_the_present_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    fresh = connect(tmp_path / "fresh.db", busy_ms=1000)
    migrate(fresh)
    old = database_of_version(tmp_path / "old.db", version, monkeypatch)
    assert old.execute("PRAGMA user_version").fetchone()[0] == version
    old.close()
    store = SqliteStore(tmp_path / "old.db")
    assert await names(store) == {"old"}
    assert (await store.counts()).conversations == 1
    await store.close()
    old = connect(tmp_path / "old.db", busy_ms=1000)
    assert schema(old) == schema(fresh)
    assert old.execute("PRAGMA user_version").fetchone()[0] == SCHEMA_VERSION
    applied = old.execute("SELECT name FROM schema_migrations ORDER BY 1").fetchall()
    assert [row[0] for row in applied] == [f"{number:04d}" for number in range(1, SCHEMA_VERSION + 1)]
    old.close()
    fresh.close()


async def test_a_newer_database_is_refused_and_left_as_it_is(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def use_the_newer_program() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(
                migrations, "STEPS", (*STEPS, ("CREATE TABLE IF NOT EXISTS novelty (x TEXT) STRICT",))
            )
            patch.setattr(migrations, "SCHEMA_VERSION", SCHEMA_VERSION + 1)
            async with places.host() as store:
                await store.conversations.ensure("a", 1)
                assert await names(store) == {"a"}

    await use_the_newer_program()
    before = sorted(path.name for path in places.volume.iterdir())
    for _ in range(2):
        with pytest.raises(
            StoreVersion, match=f"has schema version {SCHEMA_VERSION + 1}, this program knows"
        ):
            places.open()
    assert set(before) <= {path.name for path in places.volume.iterdir()}
    await use_the_newer_program()


async def test_a_migration_that_fails_leaves_the_version_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SqliteStore(tmp_path / "a.db")
    await add(store, "a")
    await store.close()
    broken = (*STEPS, ("CREATE TABLE half (x) STRICT", "NOT A STATEMENT"))
    monkeypatch.setattr(migrations, "STEPS", broken)
    monkeypatch.setattr(migrations, "SCHEMA_VERSION", len(broken))
    with pytest.raises(StoreError, match=f"could not be migrated from version {SCHEMA_VERSION}"):
        SqliteStore(tmp_path / "a.db")
    monkeypatch.undo()
    store = SqliteStore(tmp_path / "a.db")
    assert await names(store) == {"a"}
    await store.close()


def test_a_file_that_is_no_database_is_refused_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.db").write_bytes(b"something else entirely" * 100)
    with pytest.raises(StoreError, match=r"a\.db\) is damaged"):
        SqliteStore(tmp_path / "a.db")


def test_a_first_start_loads_no_packages_that_only_happen_to_be_installed(tmp_path: Path) -> None:
    (tmp_path / "numpy.py").write_text("print('loaded')")
    program = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
from pathlib import Path
from shared.store.sqlite.engine import connect
from shared.store.sqlite.migrations import migrate
connection = connect(Path({str(tmp_path)!r}, "store.db"), busy_ms=1000)
migrate(connection)
print(connection.execute("PRAGMA user_version").fetchone()[0])
import numpy
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == [str(SCHEMA_VERSION), "loaded"]

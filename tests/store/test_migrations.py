"""A database of every earlier version is brought up to date; one of a newer version is refused."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from shared.errors import StoreError, StoreVersion
from shared.ids import Token
from shared.principals import OPERATOR
from shared.store.sqlite import store as sqlite_store
from shared.store.sqlite.engine import connect
from shared.store.sqlite.store import SCHEMA_VERSION, STEPS, SqliteStore, migrate
from shared.store.volume import chain, opening, operator
from tests.store.landed_schemas import LANDED, digest
from tests.store.places import Places, add, names
from tests.store.test_operator import picoclaw

Shape = list[tuple[str, str, str]]


def schema(connection: sqlite3.Connection) -> Shape:
    found = connection.execute("SELECT type, name, sql FROM sqlite_schema WHERE sql <> '' ORDER BY 1, 2")
    return [tuple(row) for row in found]


def dump(connection: sqlite3.Connection) -> list[str]:
    """Return all there is, but for counters at 0: statements whose triggers may insert make them."""
    return [
        line for line in connection.iterdump() if not re.search(r'"sqlite_sequence" VALUES\(.*,0\);', line)
    ]


def database_of_version(path: Path, version: int, monkeypatch: pytest.MonkeyPatch) -> sqlite3.Connection:
    """Make a database as the program of that version made it, with a conversation in it."""
    connection = connect(path, busy_ms=1000)
    with monkeypatch.context() as patch:
        patch.setattr(sqlite_store, "STEPS", STEPS[:version])
        patch.setattr(sqlite_store, "SCHEMA_VERSION", version)
        migrate(connection)
    connection.execute(
        "INSERT INTO conversations (id, session_id, owner_id, created_at, last_activity)"
        " VALUES ('old', 's', 'old', 1, 1)"
    )
    return connection


@pytest.mark.parametrize("version", range(1, SCHEMA_VERSION))
async def test_a_host_brings_every_earlier_version_up_to_date_and_rollback_brings_it_back(
    places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    fresh = connect(tmp_path / "fresh.db", busy_ms=1000)
    migrate(fresh)
    places.local.mkdir()
    old = database_of_version(places.database, version, monkeypatch)
    before = dump(old)
    old.close()

    async with places.host() as store:
        assert await names(store) == {"old"}
        assert (await store.counts()).conversations == 1
        await add(store, "new")
    present = connect(places.database, busy_ms=1000)
    assert schema(present) == schema(fresh)
    applied = present.execute("SELECT name FROM schema_migrations ORDER BY 1").fetchall()
    assert [row[0] for row in applied] == [f"{number:04d}" for number in range(1, SCHEMA_VERSION + 1)]
    present.close()
    fresh.close()

    shown = picoclaw(places, "rollback")
    assert shown.returncode == 0, shown.stderr
    assert f"schema version {version}" in shown.stdout
    chain.rebuild(places.volume, tmp_path / "back.db")
    back = connect(tmp_path / "back.db", busy_ms=1000)
    assert back.execute("PRAGMA user_version").fetchone()[0] == version
    assert dump(back) == before
    back.close()
    async with places.host() as store:
        assert await names(store) == {"old"}


async def test_all_that_a_store_of_before_principals_has_is_the_operators(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = next(
        n for n, step in enumerate(STEPS) if any("CREATE TABLE principals" in each for each in step)
    )
    places.local.mkdir()
    old = database_of_version(places.database, before, monkeypatch)
    old.execute("INSERT INTO usage_by_day VALUES ('2026-01-31', 0, 3, 1, 2, 4, 8, 16, 32)")
    columns = "id, digest, conversation_id, is_main, created_at"
    old.execute(f"INSERT INTO tokens ({columns}) VALUES ('t', X'AB', 'old', 1, 1)")
    old.close()

    async with places.host() as store:
        conversations = await store.conversations.page(limit=9, cursor=None, principal_id=OPERATOR)
        assert [each.id for each in conversations.items] == ["old"]
        found = await store.tokens.find(bytes([0xAB]), 1)
        assert found is not None
        token, principal = found
        assert principal.is_operator
        assert token == Token("t", "old", True, 1, None, OPERATOR, "", ("mcp", "tasks"), None)
        host = await store.usage.by_day(limit=9, cursor=None)
        assert host == await store.usage.by_day(limit=9, cursor=None, principal_id=OPERATOR)
        assert [(day.runs, day.spending.microdollars) for day in host.items] == [(3, 32)]


async def test_a_process_beside_a_host_never_migrates_and_says_who_does(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    places.local.mkdir()
    old = database_of_version(places.database, SCHEMA_VERSION - 1, monkeypatch)
    before = dump(old)
    old.close()
    with pytest.raises(StoreVersion, match="only a host migrates it: start the host of this program once"):
        places.beside()
    old = connect(places.database, busy_ms=1000)
    assert list(old.iterdump()) == before
    old.close()
    (places.database).unlink()
    empty = places.beside()
    assert await names(empty) == set()
    await empty.close()


async def test_the_copy_from_before_a_migration_goes_when_it_is_old_or_the_history_is_folded(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    places.local.mkdir()
    database_of_version(places.database, 1, monkeypatch).close()
    async with places.host():
        (copy,) = opening.kept_copies(places.volume)
    async with places.host():
        assert opening.kept_copies(places.volume) == [copy]
    long_ago = copy.stat().st_mtime - opening.KEPT_DAYS * 24 * 3600
    content = copy.read_bytes()
    os.utime(copy, (long_ago, long_ago))
    async with places.host():
        assert opening.kept_copies(places.volume) == []
    shown = picoclaw(places, "rollback")
    assert shown.returncode == 1
    assert "There is no copy from before a migration" in shown.stderr
    copy.write_bytes(content)
    operator.compact(places.volume)
    assert opening.kept_copies(places.volume) == []


@pytest.mark.parametrize("version", LANDED["sqlite"])
def test_landed_migrations_make_what_they_made_when_they_landed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    made = database_of_version(tmp_path / "a.db", version, monkeypatch)
    lines = sorted(" ".join(" ".join(row).split()).replace(" ", "") for row in schema(made))
    made.close()
    assert digest(lines) == LANDED["sqlite"][version]


async def test_a_newer_database_is_refused_and_left_as_it_is(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def use_the_newer_program() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(
                sqlite_store, "STEPS", (*STEPS, ("CREATE TABLE IF NOT EXISTS novelty (x TEXT) STRICT",))
            )
            patch.setattr(sqlite_store, "SCHEMA_VERSION", SCHEMA_VERSION + 1)
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
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with places.host() as store:
        await add(store, "a")
    with monkeypatch.context() as patch:
        broken = (*STEPS, ("CREATE TABLE half (x) STRICT", "NOT A STATEMENT"))
        patch.setattr(sqlite_store, "STEPS", broken)
        patch.setattr(sqlite_store, "SCHEMA_VERSION", len(broken))
        with pytest.raises(StoreError, match=f"could not be migrated from version {SCHEMA_VERSION}"):
            places.open()
    async with places.host() as store:
        assert await names(store) == {"a"}


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
from shared.store.sqlite.store import migrate
connection = connect(Path({str(tmp_path)!r}, "store.db"), busy_ms=1000)
migrate(connection)
print(connection.execute("PRAGMA user_version").fetchone()[0])
import numpy
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == [str(SCHEMA_VERSION), "loaded"]

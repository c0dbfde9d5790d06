"""What every engine gives the store, and what holds for the statements that run on all of them."""

from __future__ import annotations

import contextlib
import inspect
import os
import sqlite3
from pathlib import Path

import anyio
import pytest

from shared.errors import Unavailable
from shared.store import open_store as open_sqlite
from shared.store import sql
from shared.store.contract import Engine, Tx, asking
from shared.store.postgres.database import Database as PostgresDatabase
from shared.store.postgres.driver import PostgresTx
from shared.store.sqlite.engine import Database as SqliteDatabase
from shared.store.sqlite.transactions import SqliteTx, translated
from tests.contract.store.conftest import OpenStore


@pytest.mark.parametrize(
    ("promised", "made"),
    [(Engine, SqliteDatabase), (Engine, PostgresDatabase), (Tx, SqliteTx), (Tx, PostgresTx)],
)
def test_an_engine_has_every_method(promised: type, made: type) -> None:
    methods = [name for name in vars(promised) if not name.startswith("_")]
    assert len(methods) >= 2
    for name in methods:
        wanted, given = (inspect.signature(getattr(one, name)).parameters for one in (promised, made))
        assert list(given.values()) == list(wanted.values())
        waits = inspect.iscoroutinefunction(getattr(promised, name))
        assert inspect.iscoroutinefunction(getattr(made, name)) is waits


async def test_who_asks_for_much_at_once_waits_for_themselves_alone(open_store: OpenStore) -> None:
    """One long look of a principal at a time: a thousand searches of one hold up nobody else's."""
    store = open_store()
    turns = store.conversations._engine._turns  # type: ignore[attr-defined]
    looked: list[str] = []

    async def search(who: str) -> None:
        asking.set(who)
        await store.conversations.page(limit=1, cursor=None, search="nothing")
        looked.append(who)

    async def hurried() -> None:
        with pytest.raises(Unavailable, match="try again"):
            async with turns.own(within_s=0):
                looked.append("too soon")

    async with anyio.create_task_group() as tasks:
        asking.set("ann")
        async with turns.own():
            tasks.start_soon(hurried)
            tasks.start_soon(search, "ann")
            await search("ben")
            await anyio.wait_all_tasks_blocked()
            assert looked == ["ben"]
    assert looked == ["ben", "ann"]


def test_statements_know_no_driver() -> None:
    folder = Path(next(iter(sql.__path__)))
    for path in folder.glob("*.py"):
        assert not {"sqlite3", "asyncpg", "shared.store.sqlite", "shared.store.postgres"} & set(
            path.read_text().replace(",", " ").split()
        ), path


async def test_a_transaction_on_sqlite_that_waits_for_something_else_fails_and_changes_nothing(
    tmp_path: Path,
) -> None:
    store = open_sqlite(tmp_path / "store.db", None)

    async def work(tx: Tx) -> None:
        await tx.execute("INSERT INTO tool_pins VALUES ($1, $2, $3)", b"a", b"b", 1)
        await anyio.sleep_forever()

    with pytest.raises(RuntimeError, match="awaited something else"):
        await store._engine.write(work)
    assert await store.tool_pins.swap(b"a", b"c", 2) is None
    await store.close()


async def test_a_local_disk_that_fails_is_told_to_readers_and_writers_as_such(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    await open_sqlite(path, None).close()
    store = open_sqlite(path, None)
    files = (str(path), f"{path}-wal")
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):
            if (file := os.readlink(f"/proc/self/fd/{descriptor}")) in files:
                unreadable = os.open(file, os.O_WRONLY)
                os.dup2(unreadable, descriptor)
                os.close(unreadable)
    with pytest.raises(Unavailable, match="The local disk fails"):
        await store.conversations.get("anything")
    with pytest.raises(Unavailable, match="The local disk fails"):
        await store.tool_pins.swap(b"a", b"b", 1)
    await store.close()


def test_a_statement_is_translated_without_a_change_of_its_meaning() -> None:
    statement = """SELECT greatest(a, $1::bigint) FROM t
        WHERE id = ANY($2::text[]) AND b IS NOT DISTINCT FROM $3 ORDER BY a FOR UPDATE OF t SKIP LOCKED"""
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE t (id TEXT, a INTEGER, b TEXT)")
    connection.execute("INSERT INTO t VALUES ('x', 1, NULL), ('y', 9, NULL), ('z', 9, 'b')")
    found = connection.execute(translated(statement), (5, '["x", "y", "z"]', None)).fetchall()
    connection.close()
    assert found == [(5,), (9,)]


async def test_the_store_can_be_opened_more_than_once(open_store: OpenStore) -> None:
    first, second = open_store(), open_store()
    await first.conversations.create("c", 1)
    assert await second.conversations.get("c") is not None

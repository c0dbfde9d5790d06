"""``picoclaw store migrate``: there and back, broken off and gone on with, and never onto something else."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from shared.errors import StoreError
from shared.principals import OPERATOR, Terms
from shared.store import copying, open_store
from shared.store.postgres.database import Database, Place
from shared.store.postgres.migrations import migrate
from shared.store.postgres.opening import open_shared_store
from shared.store.sql.chats import Chat
from shared.store.sqlite.store import SqliteStore
from shared.store.store import Store
from shared.store.volume import operator
from shared.values import Event
from tests.cluster.test_tool_access import a_task
from tests.contract.store.making import T0, a_key, a_principal, a_run, an_end, said
from tests.warm_host import warm


async def fill(store: Store, count: int = 30) -> None:
    for number in range(count):
        name = f"c{number}"
        await store.conversations.create(name, T0 + number)
        lease = await store.runs.begin(a_run(str(number), name, idempotency=a_key(name)))
        await store.runs.append(lease, [said(f"s{number}", "with \0 and \ufdd0 in it")], T0)
        await store.runs.finish(lease, an_end(), [], [Event(1, "done", {"n": number})], T0)
        await store.tasks.add(a_task(f"task-{number}", name), quota=10)
        await store.outbound.add(name, name, "hello", "Pico", T0)
    operator_row = await store.principals.get(OPERATOR)
    assert operator_row is not None
    await store.principals.change(replace(operator_row, terms=Terms(tasks=7)))
    await store.principals.add(a_principal("a", issuer="https://i", subject="ann", uid=70_000))
    await store.conversations.create("prin-a+main", T0, principal_id="prin-a")
    await store.channels.enter(Chat("telegram", "7", True, "7", "Ann"), T0)
    await store.outbound.add("c0", "telegram:7", "to a chat", "Pico", T0)
    await store.durable()


@pytest.fixture
async def volume(tmp_path: Path) -> Path:
    """A volume with something in every corner."""
    store = open_store(tmp_path / "first" / "store.db", tmp_path / "volume")
    await fill(store)
    await store.close()
    return tmp_path / "volume"


def picoclaw(to: str, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    with warm():
        return subprocess.run(
            [sys.executable, "-m", "host.cli", "store", "migrate", "--to", to, "--json"],
            env={"PATH": os.environ["PATH"], **environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


def exported(store_dir: Path) -> list[str]:
    return sorted(json.dumps(row, sort_keys=True) for row in operator.export(store_dir))


async def test_a_store_goes_to_postgresql_and_back_unchanged(
    volume: Path, database: str, tmp_path: Path
) -> None:
    before = exported(volume)
    settings = {"HOME": str(tmp_path), "DATABASE_URL": database, "STORE_DIR": str(volume)}
    there = picoclaw("postgres", settings)
    assert there.returncode == 0, there.stderr
    assert json.loads(there.stdout)["conversations"] == 32
    assert exported(volume) == before

    store = await open_shared_store(Place(database))
    assert (await store.counts()).tasks == 30
    assert len(await store.channels.chats_due("telegram", T0, limit=9)) == 1
    # The next numbers come after those that were copied.
    assert (await store.outbound.add("c1", "c1", "new", "Pico", T0)).seq > 31
    await store.conversations.delete("c29")
    await store.close()

    settings["STORE_DIR"] = str(tmp_path / "back")
    back = picoclaw("sqlite", settings)
    assert back.returncode == 0, back.stderr
    assert "checksum" not in back.stderr
    after = exported(tmp_path / "back")
    assert len(set(after) - set(before)) == 1, "the message that was added"
    assert all('"c29"' in row or '"run-29"' in row for row in set(before) - set(after))
    again = open_store(tmp_path / "again" / "store.db", tmp_path / "back")
    assert (await again.counts()).conversations == 31
    await again.close()


async def test_a_copy_that_was_broken_off_goes_on_and_serves_nobody_until_then(
    volume: Path, database: str
) -> None:
    target = Database(Place(database))
    await migrate(target)

    class Broken(Exception):
        pass

    def break_off(table: str, rows: int) -> None:
        if table == "runs":
            raise Broken

    with pytest.raises(Broken):
        await copying.to_postgres(volume, target, break_off)
    with pytest.raises(Exception, match="not finished"):
        await open_shared_store(Place(database))
    counts = await copying.to_postgres(volume, target, lambda table, rows: None)
    await target.close()
    assert counts["runs"] == 30
    await (await open_shared_store(Place(database))).close()


async def test_a_database_with_something_else_in_it_is_left_alone(volume: Path, database: str) -> None:
    store = await open_shared_store(Place(database))
    await store.conversations.create("mine", T0)
    with pytest.raises(Exception, match="not empty"):
        await copying.to_postgres(volume, store.database, lambda table, rows: None)
    await store.close()


async def test_a_difference_is_found(volume: Path, database: str, tmp_path: Path) -> None:
    target = Database(Place(database))
    await migrate(target)

    def never(table: str, rows: int) -> None:
        return None

    await copying.to_postgres(volume, target, never)
    await target.write(
        lambda connection: connection.execute("UPDATE messages SET text = 'other' WHERE id = 'msg-s3'")
    )
    file = tmp_path / "copy.db"
    await copying.to_sqlite(file, target, never)
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE scheduled_tasks SET prompt = 'other' WHERE id = 'task-3'")
    connection.close()
    with pytest.raises(StoreError, match=f"scheduled_tasks differs.*remove {file} and run"):
        await copying.to_sqlite(file, target, never)
    file.unlink()
    assert (await copying.to_sqlite(file, target, never))["scheduled_tasks"] == 30
    await target.close()


async def test_both_engines_have_the_same_tables_and_columns(database: str, tmp_path: Path) -> None:
    target = Database(Place(database))
    await migrate(target)
    own = {"tool_key", "schema_migrations", "counters", "commit_marks"}
    rows = await target.read(
        lambda connection: connection.fetch(
            "SELECT table_name::text AS t, column_name::text AS c FROM information_schema.columns "
            "WHERE table_schema = 'public'"
        )
    )
    await target.close()
    await SqliteStore(tmp_path / "store.db").close()
    with sqlite3.connect(tmp_path / "store.db") as connection:
        tables = copying._tables(connection)
    connection.close()
    here = {(table.name, column) for table in tables for column in table.columns}
    there = {(row["t"], row["c"]) for row in rows if row["t"] not in own}
    assert here == there

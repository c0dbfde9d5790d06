"""Taking a store from one engine to the other: in batches, gone on with after a break, compared at the end.

Nothing is changed on the side that is copied. Rows are written as they are, keys included, and a row that is
there already stays, so a copy that was broken off is simply begun again. Until the two sides have the same
number of rows with the same contents in every table, the copy counts as unfinished and no host serves it.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from shared import jsons
from shared.errors import StoreError
from shared.store.contract import Row, Tx
from shared.store.postgres.database import Database
from shared.store.postgres.migrations import LOCK
from shared.store.postgres.opening import COPY, unfinished_copy
from shared.store.rows import insertion
from shared.store.sql import webhooks
from shared.store.sql.approvals import OF_A_COPY
from shared.store.sqlite.content import tables
from shared.store.sqlite.engine import open_database
from shared.store.sqlite.store import STEPS, migrate
from shared.store.volume import operator, snapshot

BATCH: Final = 500
"""Rows of one transaction."""

LEFT_OUT: Final = frozenset({"schema_migrations", "counters"})
"""Each engine keeps these by itself."""

OPERATOR_GOES: Final = "DELETE FROM principals WHERE id = 'operator'"
"""Migrations make that row; on the side that is copied it may have been changed since."""

SAID_TO_CHATS: Final = next(
    each for step in STEPS for each in step if each.startswith("CREATE TRIGGER said ")
)

Values = tuple[Any, ...]
Tell = Callable[[str, int], None]
"""Told the table and how many of its rows are copied so far."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table as both engines have it; ``key`` is its primary key."""

    name: str
    columns: tuple[str, ...]
    key: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Digest:
    """What a side has of a table: the number of rows and the sum of their SHA-256, in whatever order."""

    rows: int = 0
    sum: int = 0

    def plus(self, values: Values) -> Digest:
        """Return the digest with one more row."""
        plain = [bytes(value).hex() if isinstance(value, bytes) else value for value in values]
        row = int.from_bytes(hashlib.sha256(jsons.dump_bytes(plain)).digest())
        return Digest(self.rows + 1, (self.sum + row) % 2**256)


async def to_postgres(store_dir: Path, database: Database, tell: Tell) -> dict[str, int]:
    """Copy a volume into a migrated database and return the rows of each table; raises StoreError."""
    with operator.held_database(store_dir) as file, closing(sqlite3.connect(file)) as source:
        await _claim(database, str(store_dir))
        tables = _tables(source)
        for table in tables:
            done = 0
            cursor = source.execute(f"SELECT {', '.join(table.columns)} FROM {table.name}")
            while batch := cursor.fetchmany(BATCH):
                await database.write(partial(_write, table=table, rows=batch))
                done += len(batch)
                tell(table.name, done)
        await database.write(lambda tx: _set_sequences(tx, tables))
        counts = await _compared(source, database, tables, "take a new database")
    await database.write(_finish)
    return counts


async def to_sqlite(work_file: Path, database: Database, tell: Tell) -> dict[str, int]:
    """Copy a database into a file that ``publish`` makes a volume's; raises StoreError.

    The file stays when the copy is broken off, and the next one goes on with it.
    """
    await _alone(database)
    with closing(open_database(work_file)) as target:
        migrate(target)
        # Deliveries are copied too: no message that is copied makes them anew.
        target.execute("DROP TRIGGER IF EXISTS said")
        target.execute(OPERATOR_GOES)
        tables = _tables(target)
        for table in tables:
            await _into_sqlite(database, target, table, tell)
        target.execute(SAID_TO_CHATS)
        counts = await _compared(target, database, tables, f"remove {work_file}")
        target.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return counts


def publish(work_file: Path, store_dir: Path) -> None:
    """Make what ``to_sqlite`` copied the store of an empty volume, and remove the file."""
    store_dir.mkdir(parents=True, exist_ok=True)
    snapshot.seal(work_file)
    operator.restore(store_dir, work_file)
    for end in ("", "-wal", "-shm"):
        Path(f"{work_file}{end}").unlink(missing_ok=True)


def _tables(connection: sqlite3.Connection) -> list[Table]:
    """Return the tables in the order they were made: whatever points to another comes after it."""
    return [_table(connection, name) for name in tables(connection) if name not in LEFT_OUT]


def _table(connection: sqlite3.Connection, name: str) -> Table:
    described = connection.execute(f"PRAGMA table_info({name})").fetchall()
    key = sorted((row[5], row[1]) for row in described if row[5])
    return Table(name, tuple(row[1] for row in described), tuple(column for _, column in key))


async def _finish(tx: Tx) -> None:
    for statement in (*OF_A_COPY, webhooks.FAN_OUT, webhooks.OF_A_COPY, "UPDATE store_copy SET finished = 1"):
        await tx.execute(statement)


async def _claim(database: Database, source: str) -> None:
    """Make sure that the database is empty, or was begun to be filled from this very source."""

    async def work(tx: Tx) -> None:
        await tx.execute("SELECT pg_advisory_xact_lock($1)", LOCK)
        begun = await unfinished_copy(tx)
        if begun == source:
            return
        if begun is not None or await tx.fetchval("SELECT 1 FROM conversations LIMIT 1") is not None:
            raise StoreError("The database is not empty: take a new one")
        await tx.execute(COPY)
        await tx.execute("DELETE FROM store_copy")
        await tx.execute(OPERATOR_GOES)
        await tx.execute("INSERT INTO store_copy VALUES ($1, 0)", source)

    await database.write(work)


async def _alone(database: Database) -> None:
    hosts = await database.read(
        lambda tx: tx.fetchval(
            """SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
            AND application_name LIKE 'host-%'"""
        )
    )
    if hosts:
        raise StoreError("A host is using the database: stop all of them first")


async def _write(tx: Tx, table: Table, rows: Sequence[Values]) -> None:
    if table.name == "outbound_messages":
        # Their deliveries are copied too.
        await tx.execute("ALTER TABLE outbound_messages DISABLE TRIGGER said")
    await tx.executemany(f"{insertion(table.name, table.columns)} ON CONFLICT DO NOTHING", rows)
    if table.name == "outbound_messages":
        await tx.execute("ALTER TABLE outbound_messages ENABLE TRIGGER said")


async def _set_sequences(tx: Tx, tables: Sequence[Table]) -> None:
    """Let the next numbers come after those that were copied."""
    for table in tables:
        for column in table.key:
            sequence = await tx.fetchval("SELECT pg_get_serial_sequence($1, $2)", table.name, column)
            if sequence is not None:
                last = await tx.fetchval(f"SELECT max({column}) FROM {table.name}")
                await tx.execute(
                    "SELECT setval($1::text::regclass, $2, $3)", sequence, last or 1, last is not None
                )


async def _into_sqlite(database: Database, target: sqlite3.Connection, table: Table, tell: Tell) -> None:
    done, places = 0, ", ".join("?" * len(table.columns))
    statement = f"INSERT OR IGNORE INTO {table.name} ({', '.join(table.columns)}) VALUES ({places})"
    async for batch in _read(database, table):
        target.execute("BEGIN")
        target.executemany(statement, batch)
        target.execute("COMMIT")
        done += len(batch)
        tell(table.name, done)


async def _fetch(tx: Tx, statement: str, values: Values) -> Sequence[Row]:
    return await tx.fetch(statement, *values)


async def _read(database: Database, table: Table) -> AsyncIterator[list[Values]]:
    """Yield a table of PostgreSQL in batches, in the order of its key."""
    key, columns = ", ".join(table.key), ", ".join(table.columns)
    after: Values = ()
    while True:
        places = ", ".join(f"${number}" for number in range(1, len(after) + 1))
        where = f"WHERE ({key}) > ({places})" if after else ""
        statement = f"SELECT {columns} FROM {table.name} {where} ORDER BY {key} LIMIT {BATCH}"
        rows = await database.read(partial(_fetch, statement=statement, values=after))
        if not rows:
            return
        yield [tuple(row[column] for column in table.columns) for row in rows]
        after = tuple(rows[-1][column] for column in table.key)


async def _compared(
    connection: sqlite3.Connection, database: Database, tables: Sequence[Table], anew: str
) -> dict[str, int]:
    """Return the rows of each table; raises StoreError where the two sides differ, which says how to begin
    ``anew``: rows that are there already stay as they are.
    """
    counts: dict[str, int] = {}
    for table in tables:
        here, there = Digest(), Digest()
        for row in connection.execute(f"SELECT {', '.join(table.columns)} FROM {table.name}"):
            here = here.plus(row)
        async for batch in _read(database, table):
            for row in batch:
                there = there.plus(row)
        if here != there:
            raise StoreError(
                f"{table.name} differs: {here.rows} rows in SQLite, {there.rows} in PostgreSQL; "
                f"was one side changed meanwhile? To copy everything anew, {anew} and run this again"
            )
        counts[table.name] = here.rows
    return counts

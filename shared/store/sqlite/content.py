"""What a database file of a store holds, row by row, and whether it can be read to the last one."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from shared import jsons
from shared.errors import StoreDamaged, StoreError
from shared.store.sqlite.failures import is_damage

JSON_COLUMNS: Final = frozenset({"blocks", "usage", "answer", "data", "terms"})


def tables(connection: sqlite3.Connection) -> list[str]:
    """Return the tables in the order they were made: whatever points to another comes after it."""
    return [
        row[0]
        for row in connection.execute(
            "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite%' ORDER BY rowid"
        )
    ]


def rows(connection: sqlite3.Connection, table: str, without: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """Yield a table's rows by their columns' names, JSON read; raises StoreDamaged."""
    found = connection.execute(f"SELECT * FROM {table}")
    columns = [column[0] for column in found.description]
    for number, row in enumerate(found, start=1):
        values = zip(columns, row, strict=True)
        try:
            yield {name: value_of(name, value) for name, value in values if name not in without}
        except ValueError as error:
            raise StoreDamaged(f"{table} has a damaged row, number {number}: {error}") from error


def rows_of(database: Path, names: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of tables of a foreign database as they are; raises StoreError.

    A copy is read, with the log that may lie beside it, so that nothing changes where it lies.
    """
    with tempfile.TemporaryDirectory(prefix="picoclaw-") as folder:
        for end in ("", "-wal"):
            if Path(f"{database}{end}").exists():
                shutil.copyfile(f"{database}{end}", Path(folder, f"copy{end}"))
        try:
            with closing(sqlite3.connect(Path(folder, "copy"))) as connection:
                connection.row_factory = sqlite3.Row
                return {
                    name: [dict(row) for row in connection.execute(f"SELECT * FROM {name}")] for name in names
                }
        except sqlite3.Error as error:
            raise StoreError(str(error)) from error


def is_of_breakcafe(database: Path) -> bool:
    """Return whether a file is a database of breakcafe/picoclaw; nobody has it open here."""
    if not database.is_file():
        return False
    try:
        with closing(sqlite3.connect(f"file:{quote(str(database))}?immutable=1", uri=True)) as connection:
            columns = connection.execute("SELECT name FROM pragma_table_info('conversations')").fetchall()
    except sqlite3.Error:
        return False
    return ("last_assistant_uuid",) in columns


def value_of(name: str, value: Any) -> Any:
    """Return what a column holds, JSON read; raises ValueError."""
    return jsons.loads(value) if name in JSON_COLUMNS and value is not None else value


def faults_in(database: Path) -> list[str]:
    """Read a database to its last row and return what is wrong with it, a sentence each."""
    with closing(sqlite3.connect(database)) as connection:
        try:
            faults = [row[0] for row in connection.execute("PRAGMA integrity_check") if row[0] != "ok"]
            faults += [f"foreign key: {tuple(row)}" for row in connection.execute("PRAGMA foreign_key_check")]
            for table in tables(connection):
                for _ in rows(connection, table):
                    pass
        except sqlite3.Error as error:
            if not is_damage(error):
                raise
            return [str(error)]
        except StoreDamaged as error:
            return [error.what]
    return faults

"""What an operator does with a volume: look whether it is sound, copy it, put a copy back, read it elsewhere.

All of it works on STORE_DIR alone. ``check``, ``backup`` and ``export`` only read, so a host may serve
meanwhile; ``restore`` and ``compact`` take the volume and refuse while a host has it.
"""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from shared import jsons
from shared.errors import StoreError, StoreVersion
from shared.store.sqlite.engine import connect
from shared.store.sqlite.migrations import SCHEMA_VERSION, migrate
from shared.store.sqlite.volume import chain, layout, snapshot
from shared.store.sqlite.volume.layout import FileId, Listing
from shared.store.sqlite.volume.lock import VolumeLock, holder
from shared.store.sqlite.volume.opening import rename_store

NOT_EXPORTED: Final = frozenset({"schema_migrations", "counters", "idempotency_keys"})
"""Tables that are nobody's content; all others are exported, in the order they were made."""

TABLES: Final = (
    "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite%' ORDER BY rowid"
)

JSON_COLUMNS: Final = frozenset({"blocks", "usage", "answer", "data"})
READ_AGAIN: Final = 3
"""A host may fold segments while its volume is read; then the reading begins again."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a check found. ``faults`` are sentences; an empty list means that the volume is sound."""

    holder: str | None
    snapshots: int
    segments: int
    volume_bytes: int
    database_bytes: int
    schema_version: int
    conversations: int
    messages: int
    tasks: int
    faults: list[str]


def check(store_dir: Path) -> Report:
    """Read everything on the volume and the database it makes; raises StoreError when it makes none."""
    listing = _listing(store_dir)
    damaged = [each.path for each in listing.snapshots if not snapshot.intact(each)]
    # A host that folds its history meanwhile removes old ones.
    faults = [f"{path.name} is damaged" for path in damaged if path.exists()]
    with _rebuilt(store_dir) as database, closing(sqlite3.connect(database)) as connection:
        faults += [row[0] for row in connection.execute("PRAGMA integrity_check") if row[0] != "ok"]
        faults += [f"foreign key: {tuple(row)}" for row in connection.execute("PRAGMA foreign_key_check")]
        by = holder(store_dir)
        return Report(
            holder=None if by is None or by.released else str(by),
            snapshots=len(listing.snapshots),
            segments=len(listing.segments),
            volume_bytes=_volume_bytes(store_dir),
            database_bytes=database.stat().st_size,
            schema_version=_number(connection, "PRAGMA user_version"),
            conversations=_number(connection, "SELECT count(*) FROM conversations"),
            messages=_number(connection, "SELECT count(*) FROM messages"),
            tasks=_number(connection, "SELECT count(*) FROM scheduled_tasks"),
            faults=faults,
        )


def backup(store_dir: Path, target: Path) -> int:
    """Write everything acknowledged so far to ``target``, one SQLite file; returns its size in bytes.

    Raises StoreError when ``target`` exists or the volume makes no database.
    """
    if target.exists():
        raise StoreError(f"{target} exists already: choose a new name")
    with _rebuilt(store_dir) as database:
        chain.quick_check(database)
        snapshot.copy_durably(database, target)
    return target.stat().st_size


def restore(store_dir: Path, source: Path) -> None:
    """Make a backup the volume's newest state; the next host uses it, whatever its local disk has.

    What the volume had stays there until the host folds its history. Raises StoreError (no usable backup),
    StoreVersion, StoreLocked.
    """
    with tempfile.TemporaryDirectory(prefix="picoclaw-") as folder:
        copy = Path(folder) / "restored.db"
        _copy_database(source, copy)
        with _taken(store_dir) as (name, _):
            snapshot.publish(copy, store_dir, name)
            rename_store(store_dir)


def compact(store_dir: Path) -> int:
    """Fold the volume's history into one snapshot and remove the rest; returns the bytes left on it.

    Afterwards no deleted byte is on the volume any more.
    """
    with _taken(store_dir) as (name, listing), _rebuilt(store_dir) as database:
        chain.quick_check(database)
        snapshot.publish(database, store_dir, name)
        for path in [
            *(each.path for each in listing.snapshots),
            *(layout.segment_path(store_dir, each) for each in listing.segments),
        ]:
            path.unlink()
        layout.sync_directory(store_dir)
    return _volume_bytes(store_dir)


def export(store_dir: Path) -> Iterator[dict[str, Any]]:
    """Yield every row as a dictionary with its ``table``, conversations first."""
    with _rebuilt(store_dir) as database, closing(sqlite3.connect(database)) as connection:
        tables = [row[0] for row in connection.execute(TABLES) if row[0] not in NOT_EXPORTED]
        for table in tables:
            rows = connection.execute(f"SELECT * FROM {table}")
            columns = [column[0] for column in rows.description]
            for row in rows:
                values = zip(columns, row, strict=True)
                yield {"table": table} | {name: _value(name, value) for name, value in values}


def _value(name: str, value: Any) -> Any:
    return jsons.loads(value) if name in JSON_COLUMNS and value is not None else value


def has_store(store_dir: Path) -> bool:
    """Return whether anything of a store lies on the volume."""
    return store_dir.is_dir() and not layout.scan(store_dir).empty


@contextmanager
def held_database(store_dir: Path) -> Iterator[Path]:
    """Hold the volume, so that no host serves it, and give the database it makes, of the newest schema."""
    with _taken(store_dir), _rebuilt(store_dir) as database:
        with closing(connect(database, busy_ms=0)) as connection:
            migrate(connection)
        yield database


@contextmanager
def _rebuilt(store_dir: Path) -> Iterator[Path]:
    """Build the newest database of a volume in a directory of its own."""
    with tempfile.TemporaryDirectory(prefix="picoclaw-") as folder:
        database = Path(folder) / "store.db"
        _read(store_dir, database)
        yield database


def _read(store_dir: Path, database: Path) -> None:
    for _ in range(READ_AGAIN - 1):
        newest = _listing(store_dir).snapshots[-1:]
        with suppress(StoreError):
            chain.rebuild(store_dir, database)
            if _listing(store_dir).snapshots[-1:] == newest:
                return
    chain.rebuild(store_dir, database)


@contextmanager
def _taken(store_dir: Path) -> Iterator[tuple[FileId, Listing]]:
    """Hold the volume; gives the name of the next file and what lies there."""
    taken = VolumeLock.acquire(store_dir, "picoclaw store")
    try:
        listing = layout.scan(store_dir)
        yield FileId(taken.era, listing.last_number() + 1), listing
    finally:
        taken.release()


def _copy_database(source: Path, target: Path) -> None:
    if not source.is_file():
        raise StoreError(f"{source} is no file")
    try:
        with closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            version = _number(connection, "PRAGMA user_version")
            with closing(sqlite3.connect(target)) as copy:
                connection.backup(copy)
        chain.quick_check(target)
    except (sqlite3.DatabaseError, chain.Damaged) as error:
        raise StoreError(f"{source} is no sound backup: {error}") from error
    if version == 0:
        raise StoreError(f"{source} is no backup of a store")
    if version > SCHEMA_VERSION:
        raise StoreVersion(
            f"{source} has schema version {version}, this program knows {SCHEMA_VERSION}: "
            "use the newer program."
        )


def _listing(store_dir: Path) -> Listing:
    listing = layout.scan(store_dir) if store_dir.is_dir() else Listing([], [])
    if listing.empty:
        raise StoreError(f"There is no store in {store_dir}")
    return listing


def _volume_bytes(store_dir: Path) -> int:
    return sum(path.stat().st_size for path in store_dir.iterdir() if path.is_file())


def _number(connection: sqlite3.Connection, statement: str) -> int:
    return int(connection.execute(statement).fetchone()[0])

"""What an operator does with a volume: look whether it is sound, copy it, put a copy back, read it elsewhere.

All of it works on STORE_DIR alone. ``check``, ``backup`` and ``export`` only read, so a host may serve
meanwhile; ``restore`` and ``compact`` take the volume and refuse while a host has it.
"""

import logging
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from shared.errors import StoreDamaged, StoreError, StoreVersion
from shared.store.sql import webhooks
from shared.store.sql.approvals import OF_A_COPY
from shared.store.sqlite.content import faults_in, is_damage, rows, tables, temporary_directory, told_apart
from shared.store.sqlite.engine import connect
from shared.store.sqlite.store import SCHEMA_VERSION, migrate
from shared.store.volume import chain, layout, opening, salvage, snapshot
from shared.store.volume.layout import FileId, Link, Listing, Snapshot, holder
from shared.store.volume.lock import VolumeLock
from shared.store.volume.opening import identity, must_hold_files, rename_store

log = logging.getLogger(__name__)

NOT_EXPORTED: Final = frozenset(
    {"schema_migrations", "counters", "idempotency_keys", "mcp_sign_ins", "gone_conversations"}
)
"""Tables that are nobody's content; all others are exported, in the order they were made."""

NOT_EXPORTED_OF: Final = "SELECT name FROM pragma_table_info(?) WHERE type = 'BLOB'"
"""Columns of an exported table that aren't: secrets and digests."""

HELD_IN_A_COPY: Final = {
    ("runs", "again"): OF_A_COPY,
    ("webhook_events", "number"): (webhooks.FAN_OUT,),
    ("webhook_deliveries", "status"): (webhooks.OF_A_COPY,),
}
"""By a column that older stores lack."""

DUMP: Final = b"PGDMP"
"""How a backup begins that ``pg_dump`` made."""

READ_AGAIN: Final = 3
"""A host may fold segments while its volume is read; then the reading begins again."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a check found. ``faults`` are sentences; an empty list means that the volume is sound."""

    store_id: str | None
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
    """Read everything on the volume and the database it makes; raises StoreError when it has no store."""
    faults: list[str] = []
    with _folder(store_dir) as folder:
        database = folder / "store.db"
        try:
            _steady(store_dir, partial(_build_all, store_dir, database))
        except StoreDamaged as error:
            faults = [error.what, *_harm(store_dir, database, folder)]
        faults += [
            f"{each.path} is damaged; nothing newer needs it, and `picoclaw store compact` removes it"
            for each in layout.scan(store_dir).snapshots
            if not any(str(each.path) in fault for fault in faults) and not _intact(each)
        ]
        return _report(store_dir, database, faults)


def check_backup(source: Path) -> Report:
    """Read a backup, or any database file of a store, to its last row; raises StoreError when it is none."""
    with _folder(source) as folder:
        database = folder / "store.db"
        _copy_database(source, database)
        return _report(None, database, faults_in(database))


def _harm(store_dir: Path, database: Path, folder: Path) -> list[str]:
    """Say what a damage costs; leaves what can be read at ``database``."""
    try:
        chain.rebuild(store_dir, database)
    except StoreDamaged:
        chain.discard(database)
        try:
            found = salvage.salvage(store_dir, database, folder)
        except StoreError as error:
            return [str(error)]
        return [found.sentence, *found.lost]
    return [] if faults_in(database) else ["The newest state doesn't need that file: nothing is lost"]


def _report(store_dir: Path | None, database: Path, faults: list[str]) -> Report:
    by = None if store_dir is None else holder(store_dir)
    listing = Listing([], []) if store_dir is None else layout.scan(store_dir)
    with closing(sqlite3.connect(database)) as connection:
        return Report(
            store_id=None if store_dir is None else identity(store_dir),
            holder=None if by is None or by.released else str(by),
            snapshots=len(listing.snapshots),
            segments=len(listing.segments),
            volume_bytes=0 if store_dir is None else _volume_bytes(store_dir),
            database_bytes=database.stat().st_size,
            schema_version=_number(connection, "PRAGMA user_version"),
            conversations=_number(connection, "SELECT count(*) FROM conversations"),
            messages=_number(connection, "SELECT count(*) FROM messages"),
            tasks=_number(connection, "SELECT count(*) FROM scheduled_tasks"),
            faults=faults,
        )


def backup(store_dir: Path, target: Path) -> int:
    """Write everything acknowledged so far to ``target``, one SQLite file; returns its size in bytes.

    The file carries its checksum. Raises StoreError when ``target`` exists or the volume is damaged.
    """
    with _rebuilt(store_dir) as database:
        return _publish_file(database, target)


def save_what_can_be_read(source: Path, target: Path) -> salvage.Salvaged:
    """Write what a damaged volume or database still has to ``target``; never touches ``source``.

    Raises StoreError when ``target`` exists or nothing can be read.
    """
    if not source.is_file() and not source.is_dir():
        raise StoreError(f"There is no file and no directory at {source}")
    must_hold_files(source)
    with _folder(source) as folder:
        database = folder / "salvaged.db"
        found = salvage.salvage(source, database, folder)
        _publish_file(database, target)
    return found


def restore(store_dir: Path, source: Path) -> str:
    """Make a backup the volume's newest state; the next host uses it, whatever its local disk has.

    What the volume had stays there until the host folds its history. Returns the store's new identity; raises
    StoreError (no usable backup), StoreVersion, StoreLocked.
    """
    with _folder(source) as folder:
        copy = folder / "restored.db"
        _copy_database(source, copy)
        if faults := faults_in(copy):
            raise StoreDamaged(f"{source} is no sound backup: {'; '.join(faults)}")
        _hold_answers(copy)
        with _taken(store_dir) as (lock, name, _):
            snapshot.publish(copy, store_dir, name)
            lock.end = Link(name, 0, 0)
            return rename_store(store_dir)


def _hold_answers(database: Path) -> None:
    """Let nothing go on by itself that people allowed, or that was cut off, before the backup was made."""
    with closing(sqlite3.connect(database)) as connection:
        for column, statements in HELD_IN_A_COPY.items():
            there = "SELECT 1 FROM pragma_table_info(?) WHERE name = ?"
            if connection.execute(there, column).fetchone():
                for statement in statements:
                    connection.execute(statement)
        connection.commit()


def compact(store_dir: Path) -> int:
    """Fold the volume's history into one snapshot and remove the rest; returns the bytes left on it.

    Afterwards no deleted byte is on the volume any more. A damaged volume is refused and left as it is.
    """
    with _taken(store_dir) as (lock, name, listing), _folder(store_dir) as folder:
        database = folder / "store.db"
        _build_all(store_dir, database)
        snapshot.publish(database, store_dir, name)
        lock.end = Link(name, 0, 0)
        for path in [
            *(each.path for each in listing.snapshots),
            *(layout.segment_path(store_dir, each) for each in listing.segments),
            *opening.kept_copies(store_dir),
        ]:
            path.unlink()
        layout.sync(store_dir)
    return _volume_bytes(store_dir)


def export(store_dir: Path) -> Iterator[dict[str, Any]]:
    """Yield every row as JSON with its ``table``, conversations first, no secrets; raises StoreDamaged."""
    with _rebuilt(store_dir) as database, closing(sqlite3.connect(database)) as connection:
        for table in tables(connection):
            if table not in NOT_EXPORTED:
                without = [name for (name,) in connection.execute(NOT_EXPORTED_OF, (table,))]
                yield from ({"table": table} | row for row in rows(connection, table, without))


def has_store(store_dir: Path) -> bool:
    """Return whether anything of a store lies on the volume."""
    return store_dir.is_dir() and not layout.scan(store_dir).empty


@contextmanager
def held_database(store_dir: Path) -> Iterator[Path]:
    """Hold the volume, so that no host serves it, and give the database it makes, of the newest schema."""
    with _taken(store_dir), _rebuilt(store_dir) as database:
        with _room(store_dir), closing(connect(database, busy_ms=0)) as connection:
            migrate(connection)
        yield database


@contextmanager
def _rebuilt(store_dir: Path) -> Iterator[Path]:
    """Build the newest database of a volume in a directory of its own; raises StoreDamaged."""
    _listing(store_dir)
    with ExitStack() as folders:
        with _room(store_dir):
            database = folders.enter_context(temporary_directory()) / "store.db"
            _steady(store_dir, lambda: chain.rebuild(store_dir, database))
            chain.quick_check(database)
        yield database


@contextmanager
def _folder(source: Path) -> Iterator[Path]:
    """Give a directory for a copy; what fails within is the machine's fault, or damage."""
    with _room(source), temporary_directory() as folder:
        yield folder


def _room(source: Path) -> AbstractContextManager[None]:
    def wanted() -> int:
        return chain.wanted_bytes(source) if source.is_dir() else source.stat().st_size

    return told_apart(f"TMPDIR, for a copy of {source}", Path(tempfile.gettempdir()), wanted)


def _steady(store_dir: Path, read: Callable[[], object]) -> None:
    """Read the volume, and again when a host folded its segments meanwhile: then files are gone."""
    for _ in range(READ_AGAIN):
        before = _listing(store_dir).snapshots
        try:
            read()
        except (StoreDamaged, FileNotFoundError):
            if _listing(store_dir).snapshots == before:
                raise
        else:
            return
    read()


def _build_all(store_dir: Path, database: Path) -> None:
    """Build the newest database from the oldest snapshot and from the newest, and read all of it."""
    faults: list[str] = []
    for build in (chain.rebuild_from_oldest, chain.rebuild):
        try:
            build(store_dir, database)
        except StoreDamaged as error:
            faults.append(error.what)
    if faults := list(dict.fromkeys(faults)) or faults_in(database):
        raise StoreDamaged("; ".join(faults))


def _intact(each: Snapshot) -> bool:
    # A host that folds its history meanwhile removes old ones.
    with suppress(FileNotFoundError):
        return snapshot.intact(each)
    return True


@contextmanager
def _taken(store_dir: Path) -> Iterator[tuple[VolumeLock, FileId, Listing]]:
    """Hold the volume; gives the name of the next file and what lies there."""
    taken = VolumeLock.acquire(store_dir, "picoclaw store")
    try:
        listing = layout.scan(store_dir)
        yield taken, FileId(taken.era, listing.last_number() + 1), listing
    finally:
        taken.release()


def _publish_file(database: Path, target: Path) -> int:
    if target.exists():
        raise StoreError(f"{target} exists already: choose a new name")
    snapshot.seal(database)
    room = told_apart("the new file", target.absolute().parent, lambda: database.stat().st_size)
    with room, layout.durably(target) as temporary:
        snapshot.copy(database, temporary)
    snapshot.must_be_whole(target)
    return target.stat().st_size


def _copy_database(source: Path, target: Path) -> None:
    if not source.is_file():
        raise StoreError(f"{source} is no file")
    with source.open("rb") as file:
        if file.read(len(DUMP)) == DUMP:
            read = f"`pg_restore --file=/dev/null {source}` reads all of it"
            raise StoreError(f"{source} is a dump of a PostgreSQL, for pg_restore: {read}")
    if not snapshot.must_be_whole(source):
        log.warning("%s carries no checksum: only its structure and its rows are checked", source)
    snapshot.copy_with_log(source, target)
    try:
        with closing(sqlite3.connect(target, isolation_level=None)) as connection:
            connection.execute("PRAGMA application_id = 0")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            version = _number(connection, "PRAGMA user_version")
            found = tables(connection)
        chain.quick_check(target)
    except (sqlite3.Error, StoreDamaged) as error:
        if isinstance(error, sqlite3.Error) and not is_damage(error):
            raise
        raise StoreDamaged(f"{source} is no sound backup: {getattr(error, 'what', error)}") from error
    if version == 0 or (version <= SCHEMA_VERSION and "conversations" not in found):
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

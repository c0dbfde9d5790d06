"""The store on the embedded engine, and its schema's versions, kept by sqlite-utils in ``schema_migrations``.

``PRAGMA user_version`` holds the number of the newest migration, so that a start without pending ones
doesn't pay for the import of sqlite-utils (0.18 s).
"""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from shared.errors import StoreError, StoreVersion
from shared.store.sql.lifetimes import Retention
from shared.store.sql.migrations import check_not_newer, versions
from shared.store.sqlite.content import is_damage
from shared.store.sqlite.engine import Database, Shipper
from shared.store.store import Store

if TYPE_CHECKING:
    from sqlite_utils import Database as UtilsDatabase

Keep = Callable[[sqlite3.Connection, int], None]
"""Makes a copy of a database that has this version, before it is migrated."""

WORDS: Final = {
    "id": "TEXT",
    "integer": "INTEGER",
    "bytes": "BLOB",
    "number": "INTEGER PRIMARY KEY",
    "sequence": "INTEGER PRIMARY KEY AUTOINCREMENT",
    "table": "STRICT",
    "by key": "STRICT, WITHOUT ROWID",
    "now": "CAST(strftime('%s', 'now') AS INTEGER) * 1000",
    "random": "lower(hex(randomblob(16)))",
    "object": "json_object",
}

STEPS: Final = versions("sqlite", WORDS)
"""Statements of each version, oldest first."""

SCHEMA_VERSION: Final = len(STEPS)


def migrate(connection: sqlite3.Connection, keep: Keep | None = None) -> None:
    """Bring a database up to SCHEMA_VERSION, with the gate held; raises StoreVersion for a newer one.

    ``keep`` copies an older one before anything is changed.
    """
    version = _version(connection)
    check_not_newer(version, SCHEMA_VERSION)
    if version == SCHEMA_VERSION:
        return
    if version and keep is not None:
        keep(connection, version)
    make_row, connection.row_factory = connection.row_factory, None
    try:
        _apply(connection)
    except sqlite3.DatabaseError as error:
        if not is_damage(error):
            raise
        raise StoreError(f"The database could not be migrated from version {version}: {error}") from error
    finally:
        connection.row_factory = make_row


def fill(connection: sqlite3.Connection) -> None:
    """Make the tables of an empty database; raises StoreVersion for one that isn't of this very version.

    For processes beside a host: only a host migrates, which has made a copy before.
    """
    version = _version(connection)
    if 0 < version < SCHEMA_VERSION:
        raise StoreVersion(
            f"The database has schema version {version}, this program needs {SCHEMA_VERSION}, "
            "and only a host migrates it: start the host of this program once."
        )
    migrate(connection)


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _apply(connection: sqlite3.Connection) -> None:
    with _without("numpy", "pandas"):
        from sqlite_utils import Database as UtilsDatabase
        from sqlite_utils.migrations import Migrations

    class Numbered(Migrations):
        migrations_table = "schema_migrations"

    numbered = Numbered("picoclaw")
    for number, statements in enumerate(STEPS, start=1):
        numbered(name=f"{number:04d}")(_step(number, statements))
    numbered.apply(UtilsDatabase(connection, recursive_triggers=False, execute_plugins=False))


@contextmanager
def _without(*packages: str) -> Iterator[None]:
    """Have imports not find these; sqlite-utils would load them for types that no column here has."""
    modules: dict[str, Any] = sys.modules
    absent = [name for name in packages if name not in modules]
    modules.update(dict.fromkeys(absent))
    try:
        yield
    finally:
        for name in absent:
            del modules[name]


def _step(number: int, statements: tuple[str, ...]) -> Callable[[UtilsDatabase], None]:
    def apply(database: UtilsDatabase) -> None:
        for statement in statements:
            database.execute(statement)
        database.execute(f"PRAGMA user_version = {number}")

    return apply


class SqliteStore(Store):
    """A local file; ``shipper`` carries its commits to the volume.

    ``keep``: for a host, which migrates an older database after a copy of it was made. Raises StoreVersion.
    """

    def __init__(
        self,
        path: Path,
        shipper: Shipper | None = None,
        retention: Retention | None = None,
        token_id: str | None = None,
        keep: Keep | None = None,
    ) -> None:
        self.origin = None if shipper is None else shipper.origin
        self._db = Database(path, shipper, token_id)
        try:
            self._db.upgrade(fill if keep is None else partial(migrate, keep=keep))
        except BaseException:
            self._db.give_up()
            raise
        super().__init__(self._db, retention)

    def tool_access(self, conversation_id: str, *, is_main: bool, principal_id: str) -> str | None:
        """Return None: tool servers open the same file."""
        return None

    def give_up(self) -> None:
        """Close after an opening that failed."""
        self._db.give_up()

    async def probe(self) -> None:
        """Try the local disk, and look how the volume is, which is tried all the time."""
        await self._db.probe()

    def make_room(self) -> None:
        """Give back the space that is kept for when the local disk is full."""
        self._db.reserve.release()

    async def prune(self, now: int, *, limit: int) -> int:
        """Remove at most ``limit`` rows that retention no longer keeps; returns how many went."""
        self._db.reserve.keep()
        return await super().prune(now, limit=limit)

    async def close(self) -> None:
        """Make everything durable and give all connections back."""
        await self._db.close()

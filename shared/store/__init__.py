"""Opening the store: as the host that owns the volume, or beside it as a tool server."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sqlite3

    from shared.store.sql.lifetimes import Retention
    from shared.store.sqlite.store import SqliteStore
    from shared.store.store import Store


def open_host_store(
    *,
    store_dir: Path,
    local_db: Path,
    owner: str,
    retention: Retention | None = None,
    store_id: str | None = None,
) -> SqliteStore:
    """Take ``store_dir``, make ``local_db`` the newest good copy, migrate it, and return the store.

    Everything the runtime database had ahead of the volume is on the volume when this returns. ``owner``
    is how other hosts will name this one, ``store_id`` the only store that will do. Raises StoreLocked
    (another host holds the volume or the runtime database), StoreVersion (a newer program's database),
    StoreMismatch, StoreDamaged (something acknowledged can't be shown), StoreEnvironment (no room, no right).
    """
    from shared.errors import NotDurable, StoreEnvironment
    from shared.store.sqlite.content import told_apart
    from shared.store.sqlite.store import SqliteStore
    from shared.store.volume.volume import open_host_volume

    local_db = _own_name(local_db)
    with told_apart("LOCAL_DB_PATH", local_db):
        volume = open_host_volume(store_dir, local_db, owner, store_id)
        store = SqliteStore(local_db, volume, retention, keep=partial(_keep, store_dir, local_db))
        try:
            volume.ship_now()
        except BaseException as error:
            store.give_up()
            if isinstance(error, NotDurable):
                raise StoreEnvironment(f"STORE_DIR cannot be used: {error}") from error
            raise
    volume.start_upkeep()
    return store


def open_tool_store(
    local_db: Path, store_dir: Path | None, access: str | None, token_id: str | None = None
) -> Store:
    """Return a tool server's store: ``access`` (what the host made of the database for it), or by path.

    With a token each of its transactions that write raises Unauthorized once the token has ended.
    """
    if access is None:
        return open_store(local_db, store_dir, token_id)
    from shared.store.postgres.opening import open_tool_store as open_postgres

    return open_postgres(access, token_id)


def holds_store(local_db: Path, store_dir: Path | None) -> bool:
    """Return whether a tool server would find what a host made: the database, or its copy on the volume."""
    from shared.store.volume.operator import has_store

    local_db = _own_name(local_db)
    try:
        here = any(path.exists() and path.stat().st_size for path in (local_db, Path(f"{local_db}.ship")))
        return here or (store_dir is not None and has_store(store_dir))
    except OSError:
        return True  # whoever opens it says what is wrong


def warm_shared_store() -> None:
    """Import what sessions on a store of several hosts will need, so that a fork has it already."""
    from shared.store.postgres import driver, opening

    driver.load()
    _ = opening.open_tool_store


def open_store(local_db: Path, store_dir: Path | None = None, token_id: str | None = None) -> SqliteStore:
    """Return the store of a process that works beside a host, or after it, on the same machine.

    Where the volume is, the host left in a file beside ``local_db``; ``store_dir`` says it when no host
    ever ran. With neither there is no volume, and ``durable()`` promises the local disk only.
    """
    from shared.errors import NotDurable, StoreEnvironment
    from shared.store.sqlite.content import told_apart
    from shared.store.sqlite.store import SqliteStore
    from shared.store.volume.volume import join_volume

    local_db = _own_name(local_db)
    try:
        with told_apart("LOCAL_DB_PATH", local_db):
            return SqliteStore(local_db, join_volume(local_db, store_dir), token_id=token_id)
    except NotDurable as error:
        raise StoreEnvironment(f"The store cannot be used: {error}") from error


def _keep(store_dir: Path, local_db: Path, connection: sqlite3.Connection, version: int) -> None:
    from shared.store.volume.opening import keep_copy  # seldom

    keep_copy(store_dir, local_db, connection, version)


def _own_name(local_db: Path) -> Path:
    """Return the path without links: SQLite follows them, and its log and our locks stand beside the file."""
    return Path(os.path.realpath(local_db))

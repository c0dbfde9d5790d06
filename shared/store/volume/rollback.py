"""The way back to the program before: the copy that a host makes of a database before it migrates it.

It lies on the volume, sealed like a backup, until the next migration, ``compact``, or the first start after
``KEPT_DAYS``: what was deleted since is in it.
"""

from __future__ import annotations

import re
import sqlite3
import time
from pathlib import Path
from typing import Final

from shared.errors import StoreError
from shared.store.sqlite.failures import told_apart
from shared.store.volume import chain, layout, sealing, snapshot

NAME: Final = re.compile(r"before-migration-from-(\d+)\.db")
KEPT_DAYS: Final = 30


def keep(store_dir: Path, database: Path, connection: sqlite3.Connection, version: int) -> None:
    """Copy the database of a connection, which has this schema version, to the volume; nobody writes."""
    copy = chain.back_up(connection, database)
    try:
        sealing.seal(copy)
        path = store_dir / f"before-migration-from-{version}.db"
        room = told_apart("STORE_DIR", store_dir, lambda: copy.stat().st_size)
        with room, layout.durably(path) as temporary:
            snapshot.copy(copy, temporary)
    finally:
        chain.discard(copy)
    for earlier in kept(store_dir)[:-1]:
        earlier.unlink()


def kept(store_dir: Path) -> list[Path]:
    """Return the copies on a volume, the newest last."""
    found = [path for path in store_dir.iterdir() if NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: path.stat().st_mtime)


def newest(store_dir: Path) -> tuple[Path, int]:
    """Return the copy to go back to and its schema version; raises StoreError when there is none."""
    found = kept(store_dir) if store_dir.is_dir() else []
    if not found:
        raise StoreError(
            f"There is no copy from before a migration in {store_dir}: a host makes one when it migrates, "
            f"and it is kept for {KEPT_DAYS} days. `picoclaw store restore FILE` takes a backup"
        )
    return found[-1], int(NAME.sub(r"\1", found[-1].name))


def expire(store_dir: Path) -> None:
    """Remove the copies that were kept long enough."""
    for path in kept(store_dir):
        if path.stat().st_mtime < time.time() - KEPT_DAYS * 24 * 3600:
            path.unlink()

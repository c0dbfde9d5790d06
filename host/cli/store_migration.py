"""``picoclaw store migrate``: from the embedded engine to PostgreSQL, or back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import anyio

from host.cli.terminal import err
from shared.errors import StoreError
from shared.settings import Settings
from shared.store.copying import Tell, publish
from shared.store.copying import to_postgres as copy_to_postgres
from shared.store.copying import to_sqlite as copy_to_sqlite
from shared.store.postgres.database import Database, Place
from shared.store.postgres.migrations import migrate as migrate_schema
from shared.store.postgres.opening import in_sentences
from shared.store.volume.operator import has_store


def migrate(settings: Settings, store_dir: Path, *, to_postgres: bool) -> dict[str, int]:
    """Copy everything and return the rows of each table; raises StoreError."""
    if settings.database_url is None:
        raise StoreError("DATABASE_URL is not set: it says which PostgreSQL is meant")
    place = Place(settings.database_url.get_secret_value(), connections=2, pooled=settings.database_pooler)
    work_file = settings.local_db_path.with_name("migrating.db")
    if to_postgres:
        return anyio.run(_with, place, partial(copy_to_postgres, store_dir))
    if has_store(store_dir):
        raise StoreError(f"There is a store in {store_dir}: choose an empty directory")
    counts = anyio.run(_with, place, partial(copy_to_sqlite, work_file))
    publish(work_file, store_dir)
    return counts


async def _with(place: Place, copy: Callable[[Database, Tell], Awaitable[dict[str, int]]]) -> dict[str, int]:
    database = Database(place)
    try:
        with in_sentences("DATABASE_URL"):
            await migrate_schema(database)
            return await copy(database, _tell)
    finally:
        await database.close()


def _tell(table: str, rows: int) -> None:
    err.print(f"{table}  {rows:,}")

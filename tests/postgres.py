"""Databases of their own for tests, in the server that ``.ci/postgres`` starts."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final
from urllib.parse import urlsplit, urlunsplit

import anyio
import pytest

from shared.store.postgres.database import Database, Place
from shared.store.postgres.migrations import migrate

URL: Final = os.environ.get("PICOCLAW_TEST_DATABASE_URL", "")
WHY_NOT: Final = "PICOCLAW_TEST_DATABASE_URL is not set: make test-postgres starts a server and sets it"
needs_postgres: Final = pytest.mark.skipif(not URL, reason=WHY_NOT)

EMPTY: Final = """DO $$ BEGIN EXECUTE (SELECT 'TRUNCATE ' || string_agg(quote_ident(tablename), ', ')
    FROM pg_tables WHERE schemaname = 'public' AND tablename NOT IN ('schema_migrations', 'principals'));
    DELETE FROM principals WHERE id <> 'operator'; END $$"""

_shared: list[str] = []
_named: set[str] = set()


def address_of(name: str) -> str:
    """Return the address of a database of the server."""
    return urlunsplit(urlsplit(URL)._replace(path=f"/{name}"))


async def execute(statement: str, url: str = URL) -> None:
    """Run a statement outside a transaction."""
    database = Database(Place(url, connections=1))
    try:
        await database.read(lambda connection: connection.execute(statement))
    finally:
        await database.close()


@contextlib.asynccontextmanager
async def emptied_database() -> AsyncIterator[str]:
    """Give the address of a migrated database with nothing in it; the next test gets the same one."""
    if not _shared:
        name = f"t_{uuid.uuid4().hex}"
        await execute(f"CREATE DATABASE {name}")
        database = Database(Place(address_of(name), connections=1))
        await migrate(database)
        await database.close()
        _shared.append(address_of(name))
    yield _shared[0]
    await execute(EMPTY, _shared[0])


@contextlib.contextmanager
def fresh_database(how: str = "") -> Iterator[str]:
    """Give the address of a database without any table while the block lasts, made as ``how`` says."""
    name = f"t_{uuid.uuid4().hex}"
    _now(f"CREATE DATABASE {name} {how}")
    try:
        yield address_of(name)
    finally:
        # A tool server's connection may still be there, whose role isn't ours to end; the server goes soon.
        with contextlib.suppress(Exception):
            _now(f"DROP DATABASE {name} WITH (FORCE)")


def database_named(name: str) -> str:
    """Return the address of the database with this name, made now if it is absent; it stays."""
    if name not in _named:
        _now(f"CREATE DATABASE {name}")
        _named.add(name)
    return address_of(name)


def _now(statement: str) -> None:
    """Run a statement whether or not a loop is running here."""
    with ThreadPoolExecutor(1) as threads:
        threads.submit(lambda: anyio.run(execute, statement)).result()

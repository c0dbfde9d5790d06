"""Databases of their own for tests, in the server that ``.ci/postgres`` starts."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Final
from urllib.parse import urlsplit, urlunsplit

import anyio
import pytest

from shared.store.postgres.database import Database, Place
from shared.store.postgres.migrations import migrate

URL: Final = os.environ.get("PICOCLAW_TEST_DATABASE_URL", "")
WHY_NOT: Final = "PICOCLAW_TEST_DATABASE_URL is not set: make test-postgres starts a server and sets it"
needs_postgres: Final = pytest.mark.skipif(not URL, reason=WHY_NOT)

_template: list[str] = []


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
async def fresh_database(*, migrated: bool = True) -> AsyncIterator[str]:
    """Give the address of a database with nothing in it while the block lasts."""
    name = f"t_{uuid.uuid4().hex}"
    template = f" TEMPLATE {await _migrated_template()}" if migrated else ""
    await execute(f"CREATE DATABASE {name}{template}")
    try:
        yield address_of(name)
    finally:
        await execute(f"DROP DATABASE {name} WITH (FORCE)")


@contextlib.contextmanager
def fresh_database_now() -> Iterator[str]:
    """Like ``fresh_database``, for tests without a loop."""
    name = f"t_{uuid.uuid4().hex}"
    anyio.run(execute, f"CREATE DATABASE {name}")
    try:
        yield address_of(name)
    finally:
        anyio.run(execute, f"DROP DATABASE {name} WITH (FORCE)")


async def _migrated_template() -> str:
    if not _template:
        name = f"template_{uuid.uuid4().hex}"
        await execute(f"CREATE DATABASE {name}")
        database = Database(Place(address_of(name), connections=1))
        await migrate(database)
        await database.close()
        _template.append(name)
    return _template[0]

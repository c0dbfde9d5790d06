"""An empty store of every engine. A new engine is one more entry here and passes the same tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Final, cast

import pytest

from shared.store import open_store as open_sqlite
from shared.store.postgres.database import Place
from shared.store.postgres.opening import PostgresStore
from shared.store.store import Store
from tests.postgres import emptied_database, needs_postgres

OpenStore = Callable[[], Store]


@asynccontextmanager
async def sqlite(folder: Path) -> AsyncIterator[OpenStore]:
    yield lambda: open_sqlite(folder / "local" / "store.db", folder / "volume")


@asynccontextmanager
async def postgres(folder: Path) -> AsyncIterator[OpenStore]:
    async with emptied_database() as url:
        # What an engine lacks of the contract is found by test_engines.
        yield lambda: cast(Store, PostgresStore(Place(url)))


ENGINES: Final[dict[str, Callable[[Path], AbstractAsyncContextManager[OpenStore]]]] = {
    "sqlite": sqlite,
    "postgres": postgres,
}


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=needs_postgres)])
async def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[OpenStore]:
    """Open the same database once more, as another process would."""
    opened: list[Store] = []
    async with ENGINES[request.param](tmp_path) as open_one:

        def open_and_remember() -> Store:
            opened.append(open_one())
            return opened[-1]

        yield open_and_remember
        for each in opened:
            await each.close()


@pytest.fixture
async def store(open_store: OpenStore) -> Store:
    """An open store with nothing in it."""
    return open_store()

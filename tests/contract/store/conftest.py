"""An empty store of every engine. A new engine is one more entry here and passes the same tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

import pytest

from shared.store import open_store as open_sqlite
from shared.store.contract import Store

OpenStore = Callable[[], Store]

ENGINES: Final[dict[str, Callable[[Path], Store]]] = {
    "sqlite": lambda folder: open_sqlite(folder / "local" / "store.db", folder / "volume"),
}


@pytest.fixture(params=sorted(ENGINES))
async def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[OpenStore]:
    """Open the same database once more, as another process would."""
    opened: list[Store] = []

    def open_one() -> Store:
        opened.append(ENGINES[request.param](tmp_path))
        return opened[-1]

    yield open_one
    for each in opened:
        await each.close()


@pytest.fixture
async def store(open_store: OpenStore) -> Store:
    """An open store with nothing in it."""
    return open_store()

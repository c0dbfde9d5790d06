"""A database for tool servers, and a store to look into it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from shared.store import open_store
from shared.store.store import Store
from tests.warm_host import warm


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "picoclaw.db"


@pytest.fixture
async def store(database: Path) -> AsyncIterator[Store]:
    store = open_store(database)
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture
def warmed() -> Iterator[None]:
    """What the test starts by a module is forked from a process that has imported it."""
    with warm():
        yield

"""A store with one conversation, and the service over it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import pytest

from shared.store.sqlite.store import SqliteStore
from shared.tasks import TaskService

NOW: Final = 1_800_000_000_000
"""2027-01-15T08:00:00Z."""

HOME: Final = "conv-home"
LEASE_MS: Final = 60_000


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    opened = SqliteStore(tmp_path / "store.db")
    await opened.conversations.create(HOME, NOW)
    yield opened
    await opened.close()


@pytest.fixture
def service(store: SqliteStore) -> TaskService:
    return TaskService(store, default_timezone="Europe/Berlin", quota=5)

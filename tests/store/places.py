"""A machine's two disks as a test sees them: the volume that stays, the runtime database that may go."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from shared.store import open_host_store, open_store
from shared.store.sqlite.store import SqliteStore
from shared.store.volume import layout
from shared.store.volume.layout import Listing
from tests.warm_host import Warm


@dataclass(frozen=True)
class Places:
    volume: Path
    local: Path
    writers: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def database(self) -> Path:
        return self.local / "pico.db"

    def open(self, owner: str = "host") -> SqliteStore:
        return open_host_store(store_dir=self.volume, local_db=self.database, owner=owner)

    def beside(self) -> SqliteStore:
        return open_store(self.database)

    @asynccontextmanager
    async def host(self) -> AsyncIterator[SqliteStore]:
        store = self.open()
        try:
            yield store
        finally:
            await store.close()

    def lose_local_disk(self) -> None:
        shutil.rmtree(self.local)

    def listing(self) -> Listing:
        return layout.scan(self.volume)

    def start_writer(self, role: str, prefix: str) -> subprocess.Popen[str]:
        writer = Warm(
            [sys.executable, "-m", "tests.store.writer", role, self.volume, self.database, prefix],
            stdout=subprocess.PIPE,
            text=True,
        )
        self.writers.append(writer)
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        return writer

    def end_writers(self) -> None:
        """Kill what a test that failed left running."""
        for writer in self.writers:
            if writer.returncode is None:
                writer.kill()
                writer.communicate()


async def add(store: SqliteStore, *names: str) -> None:
    for name in names:
        await store.conversations.create(name, now=1)
    await store.durable()


async def names(store: SqliteStore) -> set[str]:
    found: set[str] = set()
    cursor = None
    while True:
        page = await store.conversations.page(limit=1000, cursor=cursor)
        found |= {item.id for item in page.items}
        cursor = page.next_cursor
        if cursor is None:
            return found


def integrity(database: Path) -> str:
    connection = sqlite3.connect(database)
    try:
        return str(connection.execute("PRAGMA integrity_check").fetchone()[0])
    finally:
        connection.close()

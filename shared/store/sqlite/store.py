"""The embedded engine as one Store."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from shared.store.contract import StoreCounts
from shared.store.sqlite.conversations import SqliteConversations
from shared.store.sqlite.engine import Database, Shipper
from shared.store.sqlite.migrations import migrate
from shared.store.sqlite.outbound import SqliteOutbound
from shared.store.sqlite.runs import SqliteRuns
from shared.store.sqlite.tasks import SqliteTasks


class SqliteStore:
    """Implements the Store contract on a local file; ``shipper`` carries commits to the volume."""

    def __init__(self, path: Path, shipper: Shipper | None = None) -> None:
        migrate(path)
        self._db = Database(path, shipper)
        self.conversations = SqliteConversations(self._db)
        self.runs = SqliteRuns(self._db)
        self.outbound = SqliteOutbound(self._db)
        self.tasks = SqliteTasks(self._db)

    async def durable(self) -> None:
        """Return once everything committed so far is on the volume; raises NotDurable."""
        await self._db.durable()

    async def counts(self) -> StoreCounts:
        """Return the counters for /health."""

        def work(connection: sqlite3.Connection) -> StoreCounts:
            values = dict(connection.execute("SELECT name, value FROM counters").fetchall())
            return StoreCounts(values["conversations"], values["tasks"])

        return await self._db.read(work)

    async def close(self) -> None:
        """Make everything durable and give all connections back."""
        await self._db.close()

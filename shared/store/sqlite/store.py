"""The embedded engine as one Store."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from shared.store.contract import StoreCounts
from shared.store.retention import Retention
from shared.store.sql.channels import Channels
from shared.store.sql.tokens import Tokens, ToolPins
from shared.store.sqlite.compactions import SqliteCompactions
from shared.store.sqlite.conversations import SqliteConversations
from shared.store.sqlite.engine import Database, Shipper
from shared.store.sqlite.migrations import migrate
from shared.store.sqlite.outbound import SqliteOutbound
from shared.store.sqlite.retention import Pruner
from shared.store.sqlite.runs import SqliteRuns
from shared.store.sqlite.tasks import SqliteTasks
from shared.store.sqlite.transactions import SqliteEngine
from shared.store.sqlite.usage import SqliteUsage


class SqliteStore:
    """Implements the Store contract on a local file; ``shipper`` carries commits to the volume."""

    several_hosts = False

    def __init__(
        self,
        path: Path,
        shipper: Shipper | None = None,
        retention: Retention | None = None,
        token_id: str | None = None,
    ) -> None:
        self.origin = None if shipper is None else shipper.origin
        self._db = Database(path, shipper, token_id)
        try:
            self._db.upgrade(migrate)
        except BaseException:
            self._db.give_up()
            raise
        engine = SqliteEngine(self._db)
        self.conversations = SqliteConversations(self._db)
        self.compactions = SqliteCompactions(self._db)
        self.runs = SqliteRuns(self._db)
        self.usage = SqliteUsage(self._db)
        self.outbound = SqliteOutbound(self._db)
        self.tasks = SqliteTasks(self._db)
        self.channels = Channels(engine)
        self.tokens = Tokens(engine)
        self.tool_pins = ToolPins(engine)
        self._pruner = Pruner(self._db, retention or Retention())

    def tool_access(self, conversation_id: str, *, is_main: bool) -> str | None:
        """Return None: tool servers open the same file."""
        return None

    async def durable(self) -> None:
        """Return once everything committed so far is on the volume; raises NotDurable."""
        await self._db.durable()

    def give_up(self) -> None:
        """Close after an opening that failed."""
        self._db.give_up()

    def volume_ok(self) -> bool:
        """Return whether the volume took everything it was given so far."""
        return self._db.volume_ok()

    def silent_s(self) -> float:
        """Return for how many seconds the volume hasn't answered."""
        return self._db.silent_s()

    async def probe(self) -> None:
        """Try the local disk, and look how the volume is, which is tried all the time."""
        await self._db.probe()

    async def counts(self) -> StoreCounts:
        """Return the counters for /health."""

        def work(connection: sqlite3.Connection) -> StoreCounts:
            values = dict(connection.execute("SELECT name, value FROM counters").fetchall())
            return StoreCounts(values["conversations"], values["tasks"])

        return await self._db.read(work)

    def make_room(self) -> None:
        """Give back the space that is kept for when the local disk is full."""
        self._db.reserve.release()

    async def prune(self, now: int, *, limit: int) -> int:
        """Remove at most ``limit`` rows that retention no longer keeps; returns how many went."""
        self._db.reserve.keep()
        return await self._pruner.prune(now, limit)

    async def close(self) -> None:
        """Make everything durable and give all connections back."""
        await self._db.close()

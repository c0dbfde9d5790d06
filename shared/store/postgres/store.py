"""The engine for several hosts as one Store."""

from __future__ import annotations

from uuid import uuid4

from shared.store.contract import StoreCounts
from shared.store.postgres.compactions import PostgresCompactions
from shared.store.postgres.conversations import PostgresConversations
from shared.store.postgres.database import LEAVE_MARK, Database, Place
from shared.store.postgres.driver import Connection
from shared.store.postgres.outbound import PostgresOutbound
from shared.store.postgres.retention import Pruner
from shared.store.postgres.runs import PostgresRuns
from shared.store.postgres.tasks import PostgresTasks
from shared.store.postgres.tool_access import ToolRole
from shared.store.postgres.transactions import PostgresEngine
from shared.store.postgres.usage import PostgresUsage
from shared.store.retention import Retention
from shared.store.sql.channels import Channels
from shared.store.sql.tokens import Tokens, ToolPins


class PostgresStore:
    """Implements the Store contract; connects when it is first used.

    What is committed is on the server's disk (``synchronous_commit``, checked at a host's start), so nothing
    has to be carried anywhere before it is acknowledged.
    """

    several_hosts = True
    origin = None

    def __init__(self, place: Place, retention: Retention | None = None) -> None:
        self.database = Database(place)
        engine = PostgresEngine(self.database)
        self.conversations = PostgresConversations(self.database)
        self.compactions = PostgresCompactions(self.database)
        self.runs = PostgresRuns(self.database)
        self.usage = PostgresUsage(self.database)
        self.outbound = PostgresOutbound(self.database)
        self.tasks = PostgresTasks(self.database)
        self.channels = Channels(engine)
        self.tokens = Tokens(engine)
        self.tool_pins = ToolPins(engine)
        self.tools: ToolRole | None = None
        self._pruner = Pruner(self.database, retention or Retention())

    def tool_access(self, conversation_id: str, *, is_main: bool) -> str | None:
        """Return a tool server's address, role and token, as one text; None before ``open_shared_store``."""
        return None if self.tools is None else self.tools.text_for(conversation_id, is_main=is_main)

    async def durable(self) -> None:
        """Return at once: a commit returns when the server's disk has it."""

    def volume_ok(self) -> bool:
        """Return whether the database could be reached the last time."""
        return not self.database.away

    def silent_s(self) -> float:
        """Return 0: there is no volume."""
        return 0.0

    async def probe(self) -> None:
        """Commit a row: a server that only reads, or has no disk left, answers all else."""
        await self.database.write(lambda connection: connection.execute(LEAVE_MARK, uuid4()))

    async def counts(self) -> StoreCounts:
        """Return the counters for /health."""

        async def work(connection: Connection) -> StoreCounts:
            found = await connection.fetch(
                "SELECT name, sum(value)::bigint AS value FROM counters GROUP BY name"
            )
            values = {row["name"]: row["value"] for row in found}
            return StoreCounts(values.get("conversations", 0), values.get("tasks", 0))

        return await self.database.read(work)

    def make_room(self) -> None:
        """Do nothing: there is no local disk to fill."""

    async def prune(self, now: int, *, limit: int) -> int:
        """Remove at most ``limit`` rows that retention no longer keeps; returns how many went."""
        return await self._pruner.prune(now, limit)

    async def close(self) -> None:
        """Give all connections back."""
        await self.database.close()

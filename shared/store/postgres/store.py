"""The store on PostgreSQL, for several hosts."""

from __future__ import annotations

from typing import Final
from uuid import uuid4

from shared.store.contract import Tx
from shared.store.postgres.database import LEAVE_MARK, Database, Place
from shared.store.postgres.tool_access import ToolRole
from shared.store.sql.retention import Retention
from shared.store.store import Store

# Nobody asks what became of a commit for longer than a run waits; the clock is the marks' own.
MARKS: Final = """DELETE FROM commit_marks WHERE mark IN (SELECT mark FROM commit_marks
    WHERE made_at <= now() - interval '1 hour' ORDER BY made_at LIMIT $1)"""

# Changes no row, and needs what a turn does: the tables, the rights, and nobody who keeps writers out.
TURN: Final = ";".join(
    f"INSERT INTO {table} ({column}) SELECT {column} FROM {table} WHERE false;"
    f"UPDATE {table} SET {column} = {column} WHERE false"
    for table, column in (
        ("conversations", "id"),
        ("messages", "id"),
        ("runs", "id"),
        ("run_events", "run_id"),
        ("idempotency_keys", "key"),
        ("usage_by_day", "day"),
        ("usage_by_conversation", "day"),
    )
)


async def _try_a_turn(tx: Tx) -> None:
    await tx.execute(TURN)
    await tx.execute(LEAVE_MARK, uuid4())


class PostgresStore(Store):
    """Connects when it is first used.

    What is committed is on the server's disk (``synchronous_commit``, checked at a host's start), so nothing
    has to be carried anywhere before it is acknowledged.
    """

    several_hosts = True

    def __init__(self, place: Place, retention: Retention | None = None) -> None:
        self.database = Database(place)
        self.tools: ToolRole | None = None
        super().__init__(self.database, retention)

    def tool_access(self, conversation_id: str, *, is_main: bool, principal_id: str) -> str | None:
        """Return a tool server's address, role and token, as one text; None before ``open_shared_store``."""
        if self.tools is None:
            return None
        return self.tools.text_for(conversation_id, is_main=is_main, principal_id=principal_id)

    async def probe(self) -> None:
        """Commit a row, and ask for what a turn writes to: a server may answer all else."""
        await self._engine.write(_try_a_turn)

    def make_room(self) -> None:
        """Do nothing: there is no local disk to fill."""

    async def prune(self, now: int, *, limit: int) -> int:
        """Remove at most ``limit`` rows that retention no longer keeps; returns how many went."""
        gone = await super().prune(now, limit=limit)
        return gone + await self._engine.write(lambda tx: tx.execute(MARKS, limit - gone))

    async def close(self) -> None:
        """Give all connections back."""
        await self.database.close()

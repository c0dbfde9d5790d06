"""A transaction on PostgreSQL, whose dialect the statements of ``sql/`` are written in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, Final

from shared.store.contract import Missing, Row, Taken
from shared.store.postgres.driver import Connection, is_server_error

UNIQUE_VIOLATION: Final = "23505"
FOREIGN_KEY_VIOLATION: Final = "23503"

LEASE_NOW: Final = "(extract(epoch FROM clock_timestamp()) * 1000)::bigint"
"""The lease clock in milliseconds: the server's, because clocks of several hosts differ.

No statement sees a clock that a change of the server's wall clock doesn't move, so that server should slew
its time, as NTP daemons do (docs/scale.md).
"""

SHARDS: Final = 32
"""Rows over which a counter is spread, by the server process that counts."""

LOCK: Final = "SELECT pg_advisory_xact_lock(hashtextextended($1, 0))"
"""Belongs to the transaction, not to the session, so it works through a pooler."""
TRY_LOCK: Final = "SELECT pg_try_advisory_xact_lock(hashtextextended($1, 0))"


@cache
def translated(statement: str) -> str:
    """Return a statement with what the names of ``shared.store.contract`` stand for here."""
    for name in ("lease_now()", "wall_now()"):
        statement = statement.replace(name, LEASE_NOW)
    return statement.replace("shard()", f"pg_backend_pid() % {SHARDS}")


class PostgresTx:
    """Implements Tx over one connection."""

    __slots__ = ("_connection",)

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def execute(self, statement: str, *values: Any) -> int:
        """Run a statement and return how many rows it changed."""
        try:
            done = await self._connection.execute(translated(statement), *values)
        except Exception as error:
            _raise_broken(error)
            raise
        changed = done.rpartition(" ")[2]
        return int(changed) if changed.isdecimal() else 0

    async def executemany(self, statement: str, values: Iterable[Sequence[Any]]) -> None:
        """Run a statement once for each row of values, in one go."""
        try:
            await self._connection.executemany(translated(statement), values)
        except Exception as error:
            _raise_broken(error)
            raise

    async def fetch(self, statement: str, *values: Any) -> Sequence[Row]:
        """Return all rows."""
        rows: Sequence[Row] = await self._connection.fetch(translated(statement), *values)
        return rows

    async def fetchrow(self, statement: str, *values: Any) -> Row | None:
        """Return the first row or None."""
        try:
            row: Row | None = await self._connection.fetchrow(translated(statement), *values)
        except Exception as error:
            _raise_broken(error)
            raise
        return row

    async def fetchval(self, statement: str, *values: Any) -> Any:
        """Return the first value of the first row or None."""
        return await self._connection.fetchval(translated(statement), *values)

    async def lock(self, kind: str, name: str) -> None:
        """Wait for whoever holds the lock of this kind and name."""
        await self._connection.execute(LOCK, f"{kind}:{name}")

    async def try_lock(self, kind: str) -> bool:
        """Take the lock of this kind, if nobody has it."""
        return bool(await self._connection.fetchval(TRY_LOCK, f"{kind}:"))


def _raise_broken(error: Exception) -> None:
    """Raise what the contract says for a constraint that doesn't hold."""
    if is_server_error(error, FOREIGN_KEY_VIOLATION):
        raise Missing(str(error)) from error
    if is_server_error(error, UNIQUE_VIOLATION):
        raise Taken(str(error)) from error

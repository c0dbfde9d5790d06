"""The statements of ``sql/`` on PostgreSQL, whose dialect they are written in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, TypeVar

from shared.store.contract import Missing, Taken, Work
from shared.store.postgres.database import FOREIGN_KEY_VIOLATION, UNIQUE_VIOLATION, Database
from shared.store.postgres.driver import Connection, is_server_error
from shared.store.postgres.lease_clock import NOW
from shared.store.postgres.locks import lock, try_lock
from shared.store.postgres.migrations import SHARDS
from shared.store.rows import Row

T = TypeVar("T")


@cache
def translated(statement: str) -> str:
    """Return a statement with what the names of ``shared.store.contract`` stand for here."""
    return statement.replace("lease_now()", NOW).replace("shard()", f"pg_backend_pid() % {SHARDS}")


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
            raise _broken(error) from error
        return int(done.rpartition(" ")[2])

    async def executemany(self, statement: str, values: Iterable[Sequence[Any]]) -> None:
        """Run a statement once for each row of values, in one go."""
        try:
            await self._connection.executemany(translated(statement), values)
        except Exception as error:
            raise _broken(error) from error

    async def fetch(self, statement: str, *values: Any) -> Sequence[Row]:
        """Return all rows."""
        return await self._connection.fetch(translated(statement), *values)

    async def fetchrow(self, statement: str, *values: Any) -> Row | None:
        """Return the first row or None."""
        try:
            return await self._connection.fetchrow(translated(statement), *values)
        except Exception as error:
            raise _broken(error) from error

    async def fetchval(self, statement: str, *values: Any) -> Any:
        """Return the first value of the first row or None."""
        return await self._connection.fetchval(translated(statement), *values)

    async def lock(self, kind: str, name: str) -> None:
        """Wait for whoever holds this lock; it belongs to the transaction, so it works through a pooler."""
        await lock(self._connection, kind, name)

    async def try_lock(self, kind: str) -> bool:
        """Take the lock of this kind, if nobody has it."""
        return await try_lock(self._connection, kind)


class PostgresEngine:
    """Implements Engine."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def read(self, work: Work[T], *, patient: bool = False, long: bool = False) -> T:
        """Run a reading function and return what it returns."""
        read = self._db.read_patiently if patient else self._db.read
        return await read(lambda connection: work(PostgresTx(connection)))

    async def write(self, work: Work[T], *, patient: bool = False, long: bool = False) -> T:
        """Run a function in one transaction, again if the server undid it."""
        write = self._db.write_patiently if patient else self._db.write
        return await write(lambda connection: work(PostgresTx(connection)))


def _broken(error: Exception) -> Exception:
    if is_server_error(error, FOREIGN_KEY_VIOLATION):
        return Missing(str(error))
    if is_server_error(error, UNIQUE_VIOLATION):
        return Taken(str(error))
    return error

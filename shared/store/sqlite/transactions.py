"""The statements of ``sql/`` on SQLite: translated once, and driven to their end without waiting.

SQLite answers at once, so nothing that a transaction awaits ever waits: the whole coroutine runs in one go on
the thread that calls it, with no event loop below.
"""

import asyncio
import re
import sqlite3
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Final, cast

import anyio

from shared import jsons
from shared.store.contract import Filling, Missing, Row, T, Taken, Tx, Work

sqlite3.register_adapter(list, jsons.dumps)

TASKS_OF: Final = (
    r"FROM scheduled_tasks WHERE conversation_id IN (SELECT id FROM conversations WHERE principal_id = \1)"
)

# A transaction has the database to itself (BEGIN IMMEDIATE), so rows need no locks of their own.
RULES: Final = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\s+FOR (?:NO KEY UPDATE|UPDATE|KEY SHARE|SHARE)(?: OF \w+(?:, \w+)*)?(?: SKIP LOCKED)?\b", ""),
        (r"= ANY\((\$\d+)::\w+\[\]\)", r"IN (SELECT value FROM json_each(\1))"),
        (
            r"SELECT \* FROM unnest\((\$\d+)::\w+\[\], (\$\d+)::\w+\[\], (\$\d+)::\w+\[\]\)",
            r"SELECT a.value, b.value, c.value FROM json_each(\1) AS a "
            r"JOIN json_each(\2) AS b ON b.key = a.key JOIN json_each(\3) AS c ON c.key = a.key",
        ),
        (r"::\w+", ""),
        (r"\bgreatest\(", "max("),
        (r"\bstrpos\(", "instr("),
        (r"\bIS NOT DISTINCT FROM\b", "IS"),
        (r"\bshard\(\)", "0"),
        # Where rows are hidden from roles, a function of the server counts them all.
        (
            r"\btask_tree_size\((\$\d+)\)",
            r"count(*) FROM scheduled_tasks"
            r" WHERE (id = \1 OR tree_id = \1) AND status IN ('active', 'paused')",
        ),
        (
            r"\bprincipal_lives\(([\w.]+)\)",
            r"EXISTS (SELECT 1 FROM principals WHERE id = \1 AND status = 'active')",
        ),
        (
            r"\bSELECT trim_tasks\((\$\d+)\)",
            rf"DELETE FROM scheduled_tasks WHERE number IN (SELECT number {TASKS_OF} AND status = 'completed'"
            rf" ORDER BY number LIMIT max(0, 1 - task_limit(\1) + (SELECT count(*) {TASKS_OF})))"
            r" RETURNING conversation_id",
        ),
        (r"\bcount_tasks_of\((\$\d+)\)", rf"count(*) {TASKS_OF}"),
        (
            r"\btask_limit\(([$\w.]+)\)",
            r"(SELECT json_extract(terms, '$.tasks') FROM principals WHERE id = \1)",
        ),
        (r"\$(\d+)", r"?\1"),
    )
)


def lease_now() -> int:
    """Return the lease clock in milliseconds: since boot, so that a change of wall clock moves no lease."""
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime_ns(clock) // 1_000_000


@cache
def translated(statement: str) -> str:
    """Return a statement in SQLite's dialect."""
    for pattern, replacement in RULES:
        statement = pattern.sub(replacement, statement)
    return statement


@dataclass(slots=True)
class SqliteTx:
    """Implements Tx over one connection."""

    _connection: sqlite3.Connection

    async def execute(self, statement: str, *values: Any) -> int:
        """Run a statement and return how many rows it changed."""
        return self._run(statement, values).rowcount

    async def executemany(self, statement: str, values: Iterable[Sequence[Any]]) -> None:
        """Run a statement once for each row of values."""
        try:
            self._connection.executemany(translated(statement), values)
        except sqlite3.IntegrityError as error:
            _raise_broken(error)
            raise

    async def fetch(self, statement: str, *values: Any) -> list[sqlite3.Row]:
        """Return all rows."""
        return self._run(statement, values).fetchall()

    async def fetch_page(self, limit: int, statement: str, *values: Any) -> tuple[list[Row], bool]:
        """Return at most so many rows, and whether there are more."""
        page = Filling(limit)
        with closing(self._run(statement, (limit + 1, *values))) as found:
            for row in found:
                if not page.takes(row):
                    break
        return page.rows, page.more

    async def fetchrow(self, statement: str, *values: Any) -> sqlite3.Row | None:
        """Return the first row or None."""
        cursor = self._run(statement, values)
        row: sqlite3.Row | None = cursor.fetchone()
        # SQLite refuses to commit while a statement with RETURNING is open.
        cursor.close()
        return row

    async def fetchval(self, statement: str, *values: Any) -> Any:
        """Return the first value of the first row or None."""
        row = await self.fetchrow(statement, *values)
        return None if row is None else row[0]

    async def number_from(self, table: str, least: int) -> None:
        """Let the numbers of a table's rows be above ``least`` (https://sqlite.org/autoinc.html)."""
        raised = "UPDATE sqlite_sequence SET seq = max(seq, $2) WHERE name = $1"
        if not await self.execute(raised, table, least):
            await self.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ($1, $2)", table, least)

    async def lock(self, kind: str, name: str) -> None:
        """Return at once: whoever writes is alone."""

    async def try_lock(self, kind: str) -> bool:
        """Return True: whoever writes is alone."""
        return True

    def _run(self, statement: str, values: Sequence[Any]) -> sqlite3.Cursor:
        try:
            return self._connection.execute(translated(statement), values)
        except sqlite3.IntegrityError as error:
            _raise_broken(error)
            raise


def drive(work: Awaitable[T]) -> T:
    """Run a coroutine that never waits to its end; raises RuntimeError if it would wait."""
    coroutine = cast(Coroutine[Any, Any, T], work)
    try:
        coroutine.send(None)
    except StopIteration as done:
        return cast(T, done.value)
    coroutine.close()
    raise RuntimeError("a transaction on SQLite awaited something else than its statements")


@dataclass(slots=True)
class _Asked:
    """A write of somebody who waits, and what became of it."""

    work: Work[Any]
    result: Any = None
    error: Exception | None = None


class Together:
    """Writes that wait for the volume anyway: one transaction, one shipping for all who come meanwhile."""

    def __init__(
        self, write: Callable[[Work[None]], Awaitable[None]], durable: Callable[[], Awaitable[None]]
    ) -> None:
        self._write = write
        self._durable = durable
        self._turn = asyncio.Lock()
        self._waiting: list[_Asked] = []

    async def write(self, work: Work[T]) -> T:
        """Run a function in a transaction, and return what it returns once that is on the volume.

        Raises what the function does, and as the engine's ``write`` and ``durable``.
        """
        mine = _Asked(work)
        self._waiting.append(mine)
        try:
            async with self._turn:
                if mine in self._waiting:
                    await self._serve()
        finally:
            if mine in self._waiting:
                self._waiting.remove(mine)
        if mine.error is not None:
            raise mine.error
        return cast(T, mine.result)

    async def _serve(self) -> None:
        asked, self._waiting = self._waiting, []
        # Whoever leaves leaves the others behind.
        with anyio.CancelScope(shield=True):
            try:
                await self._write(partial(_do_all, asked))
            except Exception:  # noqa: BLE001 - one that fails undoes all: each is tried alone
                for each in asked:
                    try:
                        await self._write(partial(_do_all, [each]))
                    except Exception as error:  # noqa: BLE001 - raised to whoever asked
                        each.error = error
            try:
                await self._durable()
            except Exception as error:  # noqa: BLE001 - raised to all who asked
                for each in asked:
                    each.error = each.error or error


async def _do_all(asked: Sequence[_Asked], tx: Tx) -> None:
    for each in asked:
        each.result = await each.work(tx)


def _raise_broken(error: sqlite3.IntegrityError) -> None:
    """Raise what the contract says for a constraint that doesn't hold."""
    match error.sqlite_errorcode:
        case sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY:
            raise Missing(str(error)) from error
        case sqlite3.SQLITE_CONSTRAINT_UNIQUE | sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY:
            raise Taken(str(error)) from error

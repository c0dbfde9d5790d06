"""What an engine gives the store: transactions in which the statements of ``sql/`` run.

Statements are written in PostgreSQL's dialect, once; SQLite's engine translates each of them once. Some names
stand for what really differs: ``lease_now()`` for the engine's lease clock and ``wall_now()`` for the
database's wall clock, in milliseconds, and ``shard()`` for the part of a counter that this connection adds
to, so that hosts don't wait for each other's row.
"""

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any, Final, Protocol, TypeVar
from weakref import WeakValueDictionary

import anyio

from shared.errors import Unavailable
from shared.principals import HOST, Actor

TURN_S: Final = 10.0
"""How long a request waits for the long work of earlier ones of its principal, in seconds."""

T = TypeVar("T")

acting: Final[ContextVar[Actor]] = ContextVar("acting", default=HOST)
"""Who asks for what is done now: once a stored token has ended, no transaction of it writes.

What outlives the request puts it aside.
"""


asking: Final[ContextVar[str | None]] = ContextVar("asking", default=None)
"""The principal for whom what happens now is done, in its requests and in its runs; None: the host."""


class Turns:
    """Long work, one piece at a time for each principal: whoever wants much waits for themselves alone."""

    def __init__(self) -> None:
        self._locks = WeakValueDictionary[str | None, anyio.Lock]()

    @asynccontextmanager
    async def own(self, *, long: bool = True, within_s: float = math.inf) -> AsyncIterator[None]:
        """Hold the turn of whoever asks, if the work is long; raises Unavailable when it doesn't come."""
        if not long:
            yield
            return
        turn = self._locks.setdefault(asking.get(), anyio.Lock())
        with anyio.move_on_after(within_s) as waiting:
            await turn.acquire()
        if waiting.cancelled_caught:
            raise Unavailable("Earlier requests like this one go on: try again", retry_after=1)
        try:
            yield
        finally:
            turn.release()


class Row(Protocol):
    """A row as every engine's driver gives it: values by the column's name or place."""

    def __getitem__(self, column: Any, /) -> Any: ...

    def __iter__(self) -> Iterator[Any]: ...


MOST_OF_PAGE: Final = 4 << 20
"""Characters of text; a page has at least one row."""


class Filling:
    """The rows of a page as they come; ``more``: there was one for which it has no room."""

    def __init__(self, limit: int) -> None:
        self.rows: list[Row] = []
        self.more = False
        self._limit = limit
        self._text = 0

    def takes(self, row: Row) -> bool:
        """Take a row, if there is room for it."""
        self.more = len(self.rows) == self._limit or self._text > MOST_OF_PAGE
        if not self.more:
            self.rows.append(row)
            self._text += sum(len(value) for value in row if isinstance(value, str))
        return not self.more


class Taken(Exception):
    """A row with this key is there already; the transaction is over."""


class Missing(Exception):
    """The row that a new one belongs to isn't there; the transaction is over."""


class Tx(Protocol):
    """A transaction, or a look at the database. Nothing else is awaited while one is open."""

    async def execute(self, statement: str, *values: Any) -> int:
        """Run a statement and return how many rows it changed; raises Taken, Missing."""

    async def executemany(self, statement: str, values: Iterable[Sequence[Any]]) -> None:
        """Run a statement once for each row of values; raises Taken, Missing."""

    async def fetch(self, statement: str, *values: Any) -> Sequence[Row]:
        """Return all rows."""

    async def fetch_page(self, limit: int, statement: str, *values: Any) -> tuple[list[Row], bool]:
        """Return at most so many rows, fewer once they have ``MOST_OF_PAGE`` of text, and whether there are
        more. ``$1`` of the statement is how many rows it takes.
        """

    async def fetchrow(self, statement: str, *values: Any) -> Row | None:
        """Return the first row or None; raises Taken, Missing."""

    async def fetchval(self, statement: str, *values: Any) -> Any:
        """Return the first value of the first row or None."""

    async def number_from(self, table: str, least: int) -> None:
        """Let the numbers that a table's rows get from now on be above ``least``, and above all before.

        Its ``number`` is a sequence. Who calls it, and whoever numbers rows, holds one lock.
        """

    async def lock(self, kind: str, name: str) -> None:
        """Wait for everybody else who holds the lock of this kind and name, until the transaction ends.

        For things that have no row yet, or that a role may not lock. Order, where one transaction takes
        several: key, conversation, task, slot.
        """

    async def try_lock(self, kind: str) -> bool:
        """Take the lock of this kind, if nobody has it."""


Work = Callable[[Tx], Awaitable[T]]


class Engine(Protocol):
    """Runs work in transactions. Work may be called again: it changes nothing but the database.

    ``patient``: for a run in flight, which outlasts a restart of the database. ``long``: work that takes
    milliseconds, which must not stand in the way of the event loop. ``durably``: return once it is on the
    volume; several that wait for that are one transaction. For what the host itself writes, not its callers.
    """

    async def read(self, work: Work[T], *, patient: bool = False, long: bool = False) -> T:
        """Run a reading function and return what it returns; raises Unavailable."""

    async def write(
        self, work: Work[T], *, patient: bool = False, long: bool = False, durably: bool = False
    ) -> T:
        """Run a function in one transaction, which an exception undoes; raises Unavailable, NotDurable.

        Whoever is cancelled meanwhile still gets what it returns.
        """

    async def durable(self) -> None:
        """Return once everything committed so far is on the volume; raises NotDurable."""

    def volume_ok(self) -> bool:
        """Return whether the last attempt to write what survives worked (True before the first)."""

    def hanging(self, within_s: float) -> str | None:
        """Return the setting whose file system hasn't answered for so many seconds; blocks as long."""

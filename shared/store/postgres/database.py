"""Connections and transactions, and what happens when the database is away.

A transaction is shielded from cancellation and bounded in time instead: it is never torn between its commit
and its answer. One that the server undid, or that never reached its commit, is tried again; when the
connection breaks in the middle of a commit, the server is asked afterwards what became of it.
"""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, cast
from uuid import UUID, uuid4

import anyio

from shared.clock import monotonic_ms, now_ms
from shared.errors import Unauthorized, Unavailable
from shared.principals import SIGNED
from shared.store.contract import TURN_S, T, Turns, Tx, Work, acting
from shared.store.postgres import driver

logger = logging.getLogger("picoclaw.store")

INSUFFICIENT_PRIVILEGE: Final = "42501"
UNDONE: Final = ("40001", "40P01", "55P03", driver.CANCELLED)
"""Serialisation failure, deadlock, a lock or a statement that took too long: the server undid it all, so that
it may be run again."""

NOT_YET: Final = "22023"
"""The state in which ``pg_xact_status`` refuses a transaction's number that lies in the future."""
ANOTHER_PROGRAMS: Final = "is it another program's? Name a database of the host's own in DATABASE_URL"
LEAVE_MARK: Final = "INSERT INTO commit_marks (mark) VALUES ($1) RETURNING pg_current_xact_id()::text"

TRIES: Final = 8
"""How often a transaction is begun that the server undoes."""
PAUSE_S: Final = 0.02
LONGEST_PAUSE_S: Final = 0.5
WAIT_S: Final = 1.0
"""How long a caller who is waiting for an answer waits for a database that is away, in seconds."""
PATIENCE_S: Final = 20.0
"""How long a run in flight does, before it fails; less than its lease, in seconds."""
CONNECTION_S: Final = 10.0
"""How long to wait for a free connection, in seconds."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the database is. ``token``: what a tool server's statements show, see ``tool_access``.

    ``token_id``: of the outside agent that it serves; when that token has ended, its statements do nothing.
    """

    url: str
    owner: str = "picoclaw"
    connections: int = 10
    pooled: bool = False
    token: str | None = None
    token_id: str | None = None


class _Unknown(Exception):
    """The connection broke while a transaction was being committed."""

    def __init__(self, xid: str | None, mark: UUID | None, result: Any) -> None:
        super().__init__("unknown")
        self.xid = xid
        self.mark = mark
        self.result = result


class _Trials:
    """How often something was tried, and for how long it will be."""

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.error: Exception | None = None
        self.over = False
        self._undone = 0
        self._pause_s = PAUSE_S

    def failed(self, error: Exception) -> None:
        """Note a failure, and whether it was the last."""
        self.error = error
        self._undone += driver.is_server_error(error, *UNDONE)
        self.over = self._undone >= TRIES or (driver.is_away(error) and monotonic_ms() >= self.deadline)

    async def pause(self) -> None:
        """Wait a little longer each time."""
        if not self.over:
            await anyio.sleep(self._pause_s)
            self._pause_s = min(self._pause_s * 2, LONGEST_PAUSE_S)

    def sentence(self) -> Unavailable:
        """Return what a caller is told."""
        if driver.sqlstate(self.error) not in (None, *UNDONE):
            return Unavailable("The database refuses the host: try again", retry_after=2)
        if self.error is not None and driver.is_away(self.error):
            return Unavailable("The database cannot be reached: try again", retry_after=2)
        return Unavailable("The database is busy: try again", retry_after=1)


async def _fate(tx: Tx, unknown: _Unknown) -> tuple[str | None, bool]:
    """Return what the server says of the transaction, then whether its mark is there."""
    status = await tx.fetchval("SELECT pg_xact_status($1::text::xid8)", unknown.xid)
    marked = await tx.fetchval("SELECT 1 FROM commit_marks WHERE mark = $1", unknown.mark)
    return status, marked is not None


async def _check_token(tx: Tx, token_id: str) -> None:
    if not await tx.fetchval("SELECT token_lives($1, $2)", token_id, now_ms()):
        raise Unauthorized("The token has ended; nothing was done.")


class Database:
    """One process's view of the database. Implements Engine."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._pool: driver.Pool | None = None
        self._opening = anyio.Lock()
        self._turns = Turns()
        self._failing: set[str] = set()

    @property
    def away(self) -> bool:
        """Return whether the last read or the last write failed for want of a database that serves."""
        return bool(self._failing)

    async def read(self, work: Work[T], *, patient: bool = False, long: bool = False) -> T:
        """Run a reading function and return what it returns; raises Unavailable."""
        patience_s = PATIENCE_S if patient else WAIT_S
        async with self._turns.own(long=long, within_s=TURN_S):
            # Nothing can be torn before there was a connection: a host that is to stop doesn't wait for one.
            return await self._until(self._reading, work, patience_s, shielded=self._pool is not None)

    async def write(
        self, work: Work[T], *, patient: bool = False, long: bool = False, durably: bool = False
    ) -> T:
        """Run a function in one transaction, again if the server undid it; raises Unavailable.

        A patient one is told what became of its commit, also when the connection broke in the middle of it.
        """
        if patient:
            return await self._until(partial(self._in_transaction, knowably=True), work, PATIENCE_S)
        async with self._turns.own(long=long, within_s=TURN_S):
            return await self._until(self._in_transaction, work, WAIT_S)

    async def durable(self) -> None:
        """Return at once: a commit returns when the server's disk has it."""

    def volume_ok(self) -> bool:
        """Return whether the database could be reached the last time."""
        return not self.away

    def hanging(self, within_s: float) -> str | None:
        """Return None: there is no file system."""

    async def close(self) -> None:
        """Give all connections back."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        with anyio.CancelScope(shield=True):
            with anyio.move_on_after(CONNECTION_S) as closing:
                await pool.close()
            if closing.cancelled_caught:
                pool.terminate()

    async def _until(
        self,
        attempt: Callable[[Work[T]], Awaitable[T]],
        work: Work[T],
        patience_s: float,
        *,
        shielded: bool = True,
    ) -> T:
        """Try until it works, until it is undone too often, or until patience is at its end."""
        trials = _Trials(monotonic_ms() + patience_s * 1000)
        with anyio.CancelScope(shield=shielded):
            while not trials.over:
                try:
                    result = await attempt(work)
                except _Unknown as unknown:
                    if await self._has_committed(unknown, trials.deadline):
                        return cast(T, unknown.result)
                except Exception as error:
                    trials.failed(error)
                    if driver.is_away(error) and not self._is_denied(error):
                        self._note(attempt, error)
                    elif not driver.is_server_error(error, *UNDONE):
                        raise
                else:
                    self._note(attempt)
                    return result
                await trials.pause()
        raise trials.sentence() from trials.error

    async def _reading(self, work: Work[T]) -> T:
        # Through a pooler, only a transaction is sure to keep its connection; a token lasts for one only.
        if self._place.pooled or self._place.token is not None:
            return await self._in_transaction(work)
        return await self._plainly(work)

    @asynccontextmanager
    async def _lent(self) -> AsyncIterator[driver.Connection]:
        pool = await self._opened()
        async with pool.acquire(timeout=CONNECTION_S) as connection:
            try:
                yield connection
            except Exception as error:
                if isinstance(error, TimeoutError) or isinstance(error.__cause__, TimeoutError):
                    # Giving it back would wait for the server once more.
                    connection.terminate()
                elif driver.is_server_error(error, driver.READ_ONLY):
                    # What a session began with stays, and another server may take writes by now.
                    connection.terminate()
                raise

    async def _plainly(self, work: Work[T]) -> T:
        async with self._lent() as connection:
            return await work(driver.PostgresTx(connection))

    async def _in_transaction(self, work: Work[T], *, knowably: bool = False) -> T:
        async with self._lent() as connection:
            transaction = connection.transaction()
            await transaction.start()
            tx = driver.PostgresTx(connection)
            try:
                if self._place.token is not None:
                    # For this transaction alone, so that a pooler can't hand it to somebody else.
                    await tx.fetchval("SELECT set_config('picoclaw.token', $1, true)", self._place.token)
                token_id = self._place.token_id or acting.get().token_id
                if token_id not in (None, SIGNED):
                    await _check_token(tx, token_id)
                result = await work(tx)
                mark = uuid4() if knowably else None
                xid = await tx.fetchval(LEAVE_MARK, mark) if knowably else None
            except BaseException as error:
                if not isinstance(error, TimeoutError):
                    with suppress(Exception):
                        await transaction.rollback()
                raise
            try:
                await transaction.commit()
            except Exception as error:
                if driver.is_away(error):
                    raise _Unknown(xid, mark, result) from error
                raise
            return result

    async def _has_committed(self, unknown: _Unknown, deadline: float) -> bool:
        """Return what became of a transaction; raises Unavailable when nobody can say."""
        self._note(self._in_transaction, unknown)
        while unknown.xid is not None and monotonic_ms() < deadline:
            try:
                status, marked = await self._plainly(lambda tx: _fate(tx, unknown))
            except Exception as error:
                # After a crash the server may not have come to this number yet: it never was on the disk.
                if driver.is_server_error(error, NOT_YET):
                    return False
                if not driver.is_away(error):
                    raise
            else:
                # A crash may give the number to another transaction: only the mark tells whose it was.
                if status in ("committed", "aborted"):
                    return bool(status == "committed" and marked)
            await anyio.sleep(0.1)
        raise Unavailable(
            "The database went away while this was being stored; look before you try again", retry_after=2
        )

    async def _opened(self) -> driver.Pool:
        if self._pool is None:
            async with self._opening:
                if self._pool is None:
                    place = self._place
                    self._pool = await driver.make_pool(
                        place.url, most=place.connections, pooled=place.pooled, owner=place.owner
                    )
        return self._pool

    def _is_denied(self, error: Exception) -> bool:
        """Return whether a tool server asked for what isn't its conversation's."""
        return self._place.token is not None and driver.is_server_error(error, INSUFFICIENT_PRIVILEGE)

    def _note(self, attempt: Callable[..., Any], error: Exception | None = None) -> None:
        """Note how an attempt went, and say when that changes. A server may take reads and refuse writes."""
        before, kind = self.away, "read" if attempt == self._reading else "write"
        if error is not None:
            self._failing.add(kind)
        elif before:
            self._failing -= {"read", kind}
        if self.away and not before:
            logger.error("The database %s", words(error))
        elif before and not self.away:
            logger.warning("The database serves again")


def words(error: BaseException | None) -> str:
    """Return what is wrong and what mends it, in the server's own words where it answered."""
    state = driver.sqlstate(error)
    if state is None:
        return "does not answer in time" if isinstance(error, TimeoutError) else "cannot be reached"
    return f"refuses the host: {error} ({state}): {driver.cure(state) or ANOTHER_PROGRAMS}"

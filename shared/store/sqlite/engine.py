"""Connections, transactions and the gate.

Statements take microseconds, so they run on the caller's event loop; what would wait (a writer in another
process, the gate) is retried on a worker thread. The gate is a file lock: writers hold it shared for the
length of a transaction, and whoever ships or resets the write-ahead log holds it alone, so that no commit
can slip between the two (see docs/storage.md).
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol, TypeVar

import anyio.to_thread

from shared.errors import StoreError

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]

BUSY_MS: Final = 5000
"""How long a statement on a worker thread waits for another process's transaction, in milliseconds."""

PRAGMAS: Final = (
    "PRAGMA foreign_keys=ON",
    # Only the holder of the gate resets the log: a frame that was not shipped must never leave it.
    "PRAGMA wal_autocheckpoint=0",
    # The volume is what survives a power cut; the local file only has to survive the process.
    "PRAGMA synchronous=OFF",
    "PRAGMA secure_delete=ON",
    "PRAGMA temp_store=MEMORY",
    "PRAGMA cache_size=-16384",
)


class Shipper(Protocol):
    """Carries committed frames to the volume; the engine tells it when there are new ones."""

    async def ship(self) -> None:
        """Return once every frame committed before the call is on the volume; raises NotDurable."""
        ...

    async def close(self) -> None:
        """Ship what is left and let the volume go."""
        ...


def connect(path: Path, *, busy_ms: int) -> sqlite3.Connection:
    """Open the database with the project's settings, in autocommit mode."""
    connection = sqlite3.connect(
        path, isolation_level=None, check_same_thread=False, cached_statements=512, timeout=busy_ms / 1000
    )
    connection.row_factory = sqlite3.Row
    connection.execute("PRAGMA journal_mode=WAL")
    for pragma in PRAGMAS:
        connection.execute(pragma)
    return connection


class Gate:
    """A lock file beside the database: shared by writers, exclusive for the one who handles the log."""

    def __init__(self, database: Path) -> None:
        self._fd = os.open(f"{database}.gate", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def shared_now(self) -> bool:
        """Take it shared if that needs no waiting."""
        return self._take(fcntl.LOCK_SH | fcntl.LOCK_NB)

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Hold it shared, waiting for as long as it takes."""
        self._take(fcntl.LOCK_SH)
        try:
            yield
        finally:
            self.release()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold it exclusively: no write transaction is open anywhere."""
        self._take(fcntl.LOCK_EX)
        try:
            yield
        finally:
            self.release()

    def release(self) -> None:
        """Give it back."""
        fcntl.flock(self._fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close the lock file."""
        os.close(self._fd)

    def _take(self, how: int) -> bool:
        try:
            fcntl.flock(self._fd, how)
        except BlockingIOError:
            return False
        return True


class Database:
    """One process's view of the database: a connection for the event loop, one for the worker thread."""

    def __init__(self, path: Path, shipper: Shipper | None = None) -> None:
        self.path = path
        self._shipper = shipper
        # Never waits on the loop; BUSY sends the work to the thread.
        self._quick = connect(path, busy_ms=0)
        self._quick_gate = Gate(path)
        self._slow: sqlite3.Connection | None = None
        self._slow_gate = Gate(path)
        self._slow_lock = threading.Lock()
        self._commits = 0
        self._durable = 0

    async def read(self, work: Work[T]) -> T:
        """Run a reading function and return what it returns."""
        try:
            return work(self._quick)
        except sqlite3.OperationalError as error:
            if not _is_busy(error):
                raise
        return await anyio.to_thread.run_sync(self._slowly, work, False)

    async def write(self, work: Work[T]) -> T:
        """Run a function in one ``BEGIN IMMEDIATE`` transaction; an exception rolls it back.

        The commit is never torn by cancellation: either nothing awaits, or the thread finishes first.
        """
        if self._quick_gate.shared_now():
            try:
                return self._transact(self._quick, work)
            except sqlite3.OperationalError as error:
                if not _is_busy(error):
                    raise
            finally:
                self._quick_gate.release()
        return await self.write_apart(work)

    async def write_apart(self, work: Work[T]) -> T:
        """Like ``write``, on the worker thread: for work that takes milliseconds."""
        return await anyio.to_thread.run_sync(self._slowly, work, True)

    async def durable(self) -> None:
        """Return once all commits of this process are on the volume; costs nothing if they are already."""
        target = self._commits
        if self._shipper is None or self._durable >= target:
            return
        await self._shipper.ship()
        self._durable = max(self._durable, target)

    async def close(self) -> None:
        """Ship what is left, then close."""
        if self._shipper is not None:
            await self._shipper.close()
        for connection in (self._quick, self._slow):
            if connection is not None:
                connection.close()
        self._quick_gate.close()
        self._slow_gate.close()

    def _slowly(self, work: Work[T], writes: bool) -> T:
        with self._slow_lock:
            if self._slow is None:
                self._slow = connect(self.path, busy_ms=BUSY_MS)
            if not writes:
                return work(self._slow)
            with self._slow_gate.shared():
                return self._transact(self._slow, work)

    def _transact(self, connection: sqlite3.Connection, work: Work[T]) -> T:
        connection.execute("BEGIN IMMEDIATE")
        before = connection.total_changes
        try:
            result = work(connection)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        if connection.total_changes != before:
            self._commits += 1
        return result


def _is_busy(error: sqlite3.OperationalError) -> bool:
    return error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def open_error(path: Path, error: sqlite3.Error) -> StoreError:
    """Return the sentence for a database that can't be opened."""
    return StoreError(f"The database {path.name} cannot be opened: {error}")

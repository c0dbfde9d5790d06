"""Connections and transactions.

Statements take microseconds, so they run on the caller's event loop; what would wait (a writer in another
process, the gate) is retried on a worker thread.

The gate is a file lock beside the database. A writer holds it for the length of its transaction, and whoever
reads or resets the write-ahead log for that moment: no commit can slip between "everything is shipped" and
"the log starts anew" (docs/storage.md).
"""

import fcntl
import os
import sqlite3
import threading
import time
import unicodedata
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final, Protocol

import anyio.to_thread

from shared.clock import now_ms
from shared.errors import NotDurable, Unauthorized, Unavailable
from shared.principals import SIGNED
from shared.processes import hangs
from shared.store.contract import TURN_S, T, Turns, Work, acting
from shared.store.sqlite.content import Reserve, forbidden, told_apart, try_disk
from shared.store.sqlite.transactions import SqliteTx, Together, drive, lease_now
from shared.store.store import StoreOrigin

BUSY_MS: Final = 5000
"""How long a statement on a worker thread waits for another process's transaction, in milliseconds."""

LIVING: Final = """SELECT 1 FROM tokens AS t JOIN principals AS p ON p.id = t.principal_id
    WHERE t.id = ? AND (t.expires_at IS NULL OR t.expires_at > ?) AND p.status = 'active'"""
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

    @property
    def origin(self) -> StoreOrigin | None:
        """Return which store is on the volume; None beside a host."""

    @property
    def ok(self) -> bool:
        """Return whether the volume took everything it was given so far."""

    @property
    def silent_s(self) -> float:
        """Return for how many seconds the volume hasn't answered; between two heartbeats that is normal."""

    def behind(self) -> bool:
        """Return whether the log may hold frames that nobody has shipped; costs microseconds."""

    async def ship(self) -> None:
        """Return once every frame committed before the call is on the volume; raises NotDurable."""

    async def close(self, let_go: Callable[[], None]) -> None:
        """Ship what is left, let the database go by calling ``let_go``, and let the volume go."""

    def close_now(self, let_go: Callable[[], None]) -> None:
        """Like ``close``, blocking."""


def connect(path: Path, *, busy_ms: int) -> sqlite3.Connection:
    """Open the database with the project's settings, in autocommit mode."""
    connection = sqlite3.connect(
        path, isolation_level=None, check_same_thread=False, cached_statements=512, timeout=busy_ms / 1000
    )
    connection.row_factory = sqlite3.Row
    # Deterministic: within one statement it is one moment, whatever the number of rows.
    connection.create_function("lease_now", 0, lease_now, deterministic=True)
    connection.create_function("wall_now", 0, now_ms, deterministic=True)
    connection.create_function("folded", 1, _folded, deterministic=True)
    connection.execute("PRAGMA journal_mode=WAL")
    for pragma in PRAGMAS:
        connection.execute(pragma)
    return connection


def _folded(text: str | None) -> str | None:
    """Return a text as a search compares it, as the function of this name on PostgreSQL does."""
    return text and unicodedata.normalize("NFC", text.upper())


def take(fd: int, timeout_ms: float) -> None:
    """Take the lock on an open file alone; raises TimeoutError.

    It asks again and again instead of waiting in the kernel, because a process stopped while it holds the
    lock must not stop all others for good.
    """
    pause, deadline = 0.0001, time.monotonic() + timeout_ms / 1000
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise TimeoutError("a lock is held by a process that doesn't move") from None
        time.sleep(pause)
        pause = min(pause * 1.5, 0.005)


class Gate:
    """A lock file beside the database, held for the length of one write or one look at the log."""

    def __init__(self, database: Path) -> None:
        self._fd = os.open(f"{database}.gate", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def now(self) -> bool:
        """Take it if that needs no waiting."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def __enter__(self) -> None:
        """Hold it: no write transaction is open anywhere else; raises TimeoutError."""
        take(self._fd, BUSY_MS)

    def release(self, *_: object) -> None:
        """Give it back."""
        fcntl.flock(self._fd, fcntl.LOCK_UN)

    __exit__ = release

    def close(self) -> None:
        """Close the lock file."""
        os.close(self._fd)


class Database:
    """One process's view of the database: a connection for the event loop, one for the worker thread.

    Implements Engine.
    """

    def __init__(self, path: Path, shipper: Shipper | None = None, token_id: str | None = None) -> None:
        self.path = path
        self._token_id = token_id
        self._shipper = shipper
        self._slow: dict[bool, sqlite3.Connection] = {}
        """For reading and for writing: who writes doesn't wait for those who search."""
        with ExitStack() as opened:
            if shipper is not None:
                opened.callback(_abandon, shipper)
            # Never waits on the loop; BUSY sends the work to the thread.
            self._quick = open_database(path)
            opened.callback(self._quick.close)
            self.reserve = Reserve(path)
            self._quick_gate = Gate(path)
            opened.callback(self._quick_gate.close)
            self._slow_gate = Gate(path)
            opened.pop_all()
        self._slow_locks = {False: threading.Lock(), True: threading.Lock()}
        self._turns = Turns()
        self._together = Together(self.write, self.durable)
        self._commits = 0
        self._durable = 0

    async def read(self, work: Work[T], *, patient: bool = False, long: bool = False) -> T:
        """Run a reading function and return what it returns; raises Unavailable where the disk fails."""
        if not long:
            try:
                return drive(work(SqliteTx(self._quick)))
            except sqlite3.OperationalError as error:
                if not _is_busy(error):
                    raise _sentence_for(error) from error
        try:
            async with self._turns.own(long=long, within_s=TURN_S):
                return await anyio.to_thread.run_sync(self._slowly, work, False)
        except (sqlite3.OperationalError, TimeoutError) as error:
            raise _sentence_for(error) from error

    async def write(
        self, work: Work[T], *, patient: bool = False, long: bool = False, durably: bool = False
    ) -> T:
        """Run a function in one ``BEGIN IMMEDIATE`` transaction; an exception rolls it back.

        The commit is never torn by cancellation: either nothing awaits, or the thread finishes first. Raises
        Unavailable when another process keeps the database busy, NotDurable when the local disk is full.
        """
        if durably:
            return await self._together.write(work)
        if not long and self._quick_gate.now():
            try:
                return self._transact(self._quick, work)
            except sqlite3.OperationalError as error:
                if not _is_busy(error):
                    raise _sentence_for(error) from error
            finally:
                self._quick_gate.release()
        try:
            async with self._turns.own(long=long, within_s=TURN_S):
                return await anyio.to_thread.run_sync(self._slowly, work, True)
        except (sqlite3.OperationalError, TimeoutError) as error:
            raise _sentence_for(error) from error

    async def durable(self) -> None:
        """Return once all commits so far, of any process, are on the volume; free if they are already."""
        target = self._commits
        if self._shipper is None or (self._durable >= target and not self._shipper.behind()):
            return
        await self._shipper.ship()
        self._durable = max(self._durable, target)

    def volume_ok(self) -> bool:
        """Return whether the volume took everything it was given so far."""
        return self._shipper is None or self._shipper.ok

    def hanging(self, within_s: float) -> str | None:
        """Return the setting whose file system hasn't answered for so many seconds; blocks as long."""
        if self._shipper is not None and self._shipper.silent_s >= within_s:
            return "STORE_DIR"
        return f"LOCAL_DB_PATH ({self.path})" if hangs(self._try_disk, within_s) else None

    async def probe(self) -> None:
        """Raise NotDurable when the local disk has no room, or the volume didn't take the last write."""
        try:
            await anyio.to_thread.run_sync(self._try_disk)
        except OSError as error:
            raise NotDurable(f"The local disk cannot be written: {error.strerror}", retry_after=5) from error
        if not self.volume_ok():
            raise NotDurable("The volume cannot be written", retry_after=5)

    def _try_disk(self) -> None:
        try_disk(self.path.with_name(f"{self.path.name}.probe"))

    def upgrade(self, work: Callable[[sqlite3.Connection], None]) -> None:
        """Run a function that manages its own transactions, while nobody else writes."""
        with self._slow_gate:
            work(self._quick)

    async def close(self) -> None:
        """Ship what is left, then close."""
        if self._shipper is None:
            self.let_go()
        else:
            await self._shipper.close(self.let_go)
        self._quick_gate.close()
        self._slow_gate.close()

    def give_up(self) -> None:
        """Close in good order, as far as that goes, after an opening that failed."""
        self.let_go()
        if self._shipper is not None:
            _abandon(self._shipper)
        self._quick_gate.close()
        self._slow_gate.close()

    def let_go(self) -> None:
        """Close the connections."""
        for connection in (self._quick, *self._slow.values()):
            connection.close()

    def _slowly(self, work: Work[T], writes: bool) -> T:
        # Who holds the gate may wait for a volume that hangs: those behind it wait for their turn alone.
        if not self._slow_locks[writes].acquire(timeout=2 * BUSY_MS / 1000):
            raise TimeoutError("other writers wait too")
        try:
            if writes not in self._slow:
                self._slow[writes] = connect(self.path, busy_ms=BUSY_MS)
            if not writes:
                return drive(work(SqliteTx(self._slow[writes])))
            with self._slow_gate:
                return self._transact(self._slow[writes], work)
        finally:
            self._slow_locks[writes].release()

    def _transact(self, connection: sqlite3.Connection, work: Work[T]) -> T:
        connection.execute("BEGIN IMMEDIATE")
        before = connection.total_changes
        try:
            token_id = self._token_id or acting.get().token_id
            if token_id not in (None, SIGNED):
                _check_token(connection, token_id)
            result = drive(work(SqliteTx(connection)))
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        if connection.total_changes != before:
            self._commits += 1
        return result


def _check_token(connection: sqlite3.Connection, token_id: str) -> None:
    if connection.execute(LIVING, (token_id, now_ms())).fetchone() is None:
        raise Unauthorized("The token has ended; nothing was done.")


def _abandon(shipper: Shipper) -> None:
    with suppress(NotDurable):
        shipper.close_now(lambda: None)


def _is_busy(error: sqlite3.OperationalError) -> bool:
    return error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _sentence_for(error: sqlite3.OperationalError | TimeoutError) -> Exception:
    """Return what a caller is told: what passes by itself is a 503, a wrong statement stays what it is."""
    if isinstance(error, TimeoutError) or _is_busy(error):
        return Unavailable("The database is busy: try again", retry_after=1)
    code = error.sqlite_errorcode & 0xFF
    if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY):
        return NotDurable(f"The local disk cannot be written: {error}", retry_after=5)
    if code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN):
        return NotDurable(f"The local disk fails: {error}", retry_after=5)
    return error


def open_database(path: Path) -> sqlite3.Connection:
    """Open the runtime database, made now if it is absent; raises StoreForbidden, StoreDamaged."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Made here so that nobody else can read it; never opened when it exists (docs/storage.md, the trap).
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    if not os.access(path, os.R_OK | os.W_OK):
        raise forbidden(path)
    with told_apart("LOCAL_DB_PATH", path):
        connection = connect(path, busy_ms=BUSY_MS)
    # Others may be opening it at this moment, which is worth a wait; a statement on the loop never is.
    connection.execute("PRAGMA busy_timeout=0")
    return connection

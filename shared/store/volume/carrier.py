"""Shipping, step by step: what one process does with the log while it holds the sidecar's lock.

Order of the locks, everywhere: the thread's, the sidecar's, the gate. Nothing waits for the volume while
it holds the gate, except the last small part before the log starts anew.
"""

import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final

from shared.errors import NotDurable, StoreDamaged, StoreError
from shared.store.sqlite.engine import BUSY_MS, Gate, connect
from shared.store.volume import chain, layout, snapshot, wal
from shared.store.volume.layout import FileId, Link, holder
from shared.store.volume.lock import Phase, Sidecar, State, boot_id
from shared.store.volume.wal import LogReplaced, Mark, NotContinuous, Tail

log = logging.getLogger(__name__)

RETRY_AFTER_S: Final = 5


class Carrier:
    """Carries the log of one runtime database to its volume. All methods block."""

    def __init__(self, database: Path) -> None:
        self.database = database
        self.log = wal.log_path(database)
        self.sidecar = Sidecar(database)
        self._gate = Gate(database)
        self.ended: Link | None = None
        self._mutex = threading.Lock()
        self._connection: sqlite3.Connection | None = None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Be the only one who ships."""
        with self._mutex, self.sidecar:
            yield

    def ship(self) -> State:
        """Bring everything committed so far to the volume; raises NotDurable."""
        with _failures(), self.held():
            return self.catch_up(self.state())

    def state(self) -> State:
        """Return how far shipping is; raises NotDurable when that isn't about this database."""
        state = self.sidecar.read()
        if state is None or self.database.stat().st_ino != state.inode:
            raise _replaced()
        return state

    def catch_up(self, state: State) -> State:
        """Ship what the log has, or, when somebody began it anew or cut the segment, a new snapshot.

        Only for a process that had the database open all the time: it has what was in the log before.
        """
        try:
            return self._carry(state)
        except LogReplaced as error:
            raise _replaced() from error
        except (NotContinuous, StoreDamaged) as error:
            if isinstance(error, StoreDamaged):
                log.error("The whole database is put on the volume anew: %s", error.what)
            return self.renew(state)

    def roll_over(self) -> bool:
        """Begin a new epoch of the log and a new segment; False when a reader is in the way.

        The new segment is there before the log is reset: a full volume stops this here, not halfway.
        """
        with _failures(), self.held():
            state = self.catch_up(self.state())
            following = FileId(state.era, state.segment.number + 1)
            self._create(state, following)
            connection = self._connect()
            with self._gate:
                before, state = state, self._append_all(state)
                if state is not before:
                    self._create(state, following)
                shipped = state.durable
                _reset(connection)
                mark = _first_frame(connection, self.log)
                moved = mark.salts != state.mark.salts
                state = state._replace(base=self._base())
                if moved:
                    state = state._replace(segment=following, mark=mark, previous=shipped)
                self.sidecar.write(state)
            self._carry(state)
            return moved

    def renew(self, state: State) -> State:
        """Put the whole database on the volume as a snapshot and go on from there."""
        store_dir = Path(state.store_dir)
        name = FileId(state.era, layout.scan(store_dir).last_number() + 1)
        connection = self._connect()
        with closing(connect(self.database, busy_ms=BUSY_MS)) as reader:
            with self._gate:
                # Until the snapshot is there, the local database is the newest copy, and says so.
                state = state._replace(phase=Phase.AHEAD, base=None)
                self.sidecar.write(state)
                if not _reset(connection):
                    raise NotDurable("A reader keeps the log from starting anew", retry_after=RETRY_AFTER_S)
                # This read transaction sees exactly what is before the new epoch, however long it takes.
                reader.execute("BEGIN")
                reader.execute("SELECT count(*) FROM sqlite_schema").fetchone()
                mark, base = _first_frame(connection, self.log), self._base()
            copy = chain.back_up(reader, self.database)
        try:
            self._check_token(state)
            snapshot.publish(copy, store_dir, name)
            layout.create_segment(store_dir, name, None)
        finally:
            chain.discard(copy)
        state = state._replace(segment=name, mark=mark, previous=None, phase=Phase.SHIPPING, base=base)
        self.sidecar.write(state)
        chain.clean(store_dir, state.token)
        return self._carry(state)

    def resume(self, state: State) -> State:
        """Go on with local files that ``vouched`` was true of."""
        if state.phase is Phase.AHEAD:
            return self.renew(state)
        if state.phase is Phase.ENDED:
            return self.begin_after(state, state.durable)
        self.sidecar.write(state)
        return state

    def vouched(self, state: State) -> bool:
        """Return whether the local files are those that ``state`` is about, and whole."""
        if state.boot != boot_id():
            return False
        try:
            if self.database.stat().st_ino != state.inode or state.base not in (None, self._base()):
                return False
            if state.phase is Phase.SHIPPING:
                with self._gate:
                    wal.read_tail(self.log, state.mark)
            return state.phase is not Phase.ENDED or not _size(self.log)
        except (FileNotFoundError, NotContinuous):
            return False

    def begin_after(self, state: State, previous: Link) -> State:
        """Begin an epoch and a segment on a database that is exactly what ``previous`` ends with."""
        store_dir = Path(state.store_dir)
        name = FileId(state.era, layout.scan(store_dir).last_number() + 1)
        layout.create_segment(store_dir, name, previous)
        connection = self._connect()
        with self._gate:
            mark, base = _first_frame(connection, self.log), self._base()
            state = state._replace(
                segment=name, mark=mark, previous=previous, phase=Phase.SHIPPING, base=base
            )
            self.sidecar.write(state)
        return state

    def end(self) -> Link | None:
        """Return how far the volume surely goes; None when the sidecar doesn't say."""
        state = self.sidecar.read()
        return None if state is None else state.end

    def close(self, let_go: Callable[[], None]) -> None:
        """Ship what is left, let the database go, and note what the local files are then."""
        try:
            with _failures(), self.held():
                state = self.state()
                try:
                    self._end(self.catch_up(state), Phase.ENDED, let_go)
                except (OSError, NotDurable):
                    self._end(state, Phase.AHEAD, let_go)
                    raise
        finally:
            let_go()
            self.abandon()

    def abandon(self) -> None:
        """Give everything back without shipping."""
        self._disconnect()
        self.sidecar.close()
        self._gate.close()

    def _end(self, state: State, phase: Phase, let_go: Callable[[], None]) -> None:
        with self._gate:
            if phase is Phase.ENDED:
                state = self._append_all(state)
            self.ended = state.end
            let_go()
            self._disconnect()
            # SQLite writes the log back and removes it when the last connection of all processes closes.
            if not _size(self.log):
                self.sidecar.write(state._replace(phase=phase, base=self._base()))

    def _carry(self, state: State) -> State:
        """Ship what is committed now; writers go on between two parts, and what they add is not chased."""
        end = _size(self.log)
        while True:
            with self._gate:
                tail = wal.read_tail(self.log, state.mark)
            if tail is None:
                return state
            state = self._append(state, tail)
            if state.mark.shipped >= end:
                return state

    def _append_all(self, state: State) -> State:
        """Ship everything; the caller holds the gate, so that nothing more comes."""
        while (tail := wal.read_tail(self.log, state.mark)) is not None:
            state = self._append(state, tail)
        return state

    def _append(self, state: State, tail: Tail) -> State:
        layout.append_to_segment(state.store_dir, tail.data, state.durable, state.previous)
        # After the disk has it: a host that takes over later finds it, one that took over before is seen.
        self._check_token(state)
        state = state._replace(mark=tail.mark)
        self.sidecar.write(state)
        return state

    def _create(self, state: State, following: FileId) -> None:
        self._check_token(state)
        layout.create_segment(Path(state.store_dir), following, state.durable)

    def _check_token(self, state: State) -> None:
        # Looked for in the bytes: in the middle of a heartbeat the record as a whole is torn.
        found = b""
        with suppress(FileNotFoundError):
            fd = os.open(f"{state.store_dir}/{layout.LOCK}", os.O_RDONLY | os.O_CLOEXEC)
            found = os.read(fd, layout.LOCK_BYTES)
            os.close(fd)
        if state.token.encode() not in found:
            who = holder(Path(state.store_dir)) or "its lock file is gone"
            raise NotDurable(f"Another host has taken STORE_DIR: {who}", retry_after=RETRY_AFTER_S)

    def _base(self) -> tuple[int, int]:
        found = self.database.stat()
        return found.st_size, found.st_mtime_ns

    def _connect(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = connect(self.database, busy_ms=100)
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _replaced() -> NotDurable:
    return NotDurable(
        "The runtime database was replaced while it was open: restart the host", retry_after=RETRY_AFTER_S
    )


@contextmanager
def _failures() -> Iterator[None]:
    try:
        yield
    except (OSError, sqlite3.Error, NotContinuous, StoreError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise NotDurable(
            f"The volume cannot take what was written: {reason or 'its log was reset by someone else'}",
            retry_after=RETRY_AFTER_S,
        ) from error


def _reset(connection: sqlite3.Connection) -> bool:
    """Write the log back into the database and empty it, unless a reader still needs it."""
    return int(connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]) == 0


def _first_frame(connection: sqlite3.Connection, log: Path) -> Mark:
    """Write a frame that changes nothing, so that the log's epoch is known from its first moment."""
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    connection.execute(f"PRAGMA user_version = {version}")
    return wal.begin(log)


def _size(log: Path) -> int:
    with suppress(FileNotFoundError):
        return log.stat().st_size
    return 0

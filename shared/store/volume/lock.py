"""What processes share about a volume: which host has it, and how far its database was shipped.

The kernel lock (flock) decides between processes of one machine. Between machines it may be missing or
local only, so there a holder counts as alive as long as its heartbeat moves; nobody's clock is compared.

The sidecar, a small file beside the runtime database, lives and dies with the local disk. Whoever holds its
lock may ship; what it says is written only after the volume has it, so a process killed in between makes the
next one ship the same bytes again.
"""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, NamedTuple
from uuid import uuid4

from shared.errors import StoreLocked
from shared.store.sqlite.content import PROBE_BYTES, must_be_file, told_apart, try_disk
from shared.store.sqlite.engine import take
from shared.store.volume import layout
from shared.store.volume.layout import (
    LOCK,
    LOCK_BYTES,
    FileId,
    Holder,
    Link,
    holder_of,
    link,
    numbers,
    write_all,
)
from shared.store.volume.wal import Mark

SIZE: Final = 4096
LOCK_MS: Final = 10_000
"""How long to wait for another process that ships, in milliseconds."""


class Phase(StrEnum):
    """What the local files are, compared with the volume."""

    SHIPPING = "shipping"
    """The log continues what was shipped."""
    ENDED = "ended"
    """Everything was shipped and the log written back, when the last process let go in good order."""
    AHEAD = "ahead"
    """The local database is complete and the volume isn't: it has to be shipped as a whole."""


class State(NamedTuple):
    """Which local database is shipped where, and how far.

    ``boot`` names the run of the operating system, ``inode`` the database file. ``base`` is that file's
    size and modification time (ns): between two checkpoints nothing may write to it. None: not known.
    ``previous`` is what the segment continues, None where it begins with a snapshot.
    """

    store_dir: str
    lineage: str
    token: str
    era: int
    boot: str
    inode: int
    segment: FileId
    mark: Mark
    previous: Link | None
    phase: Phase = Phase.SHIPPING
    base: tuple[int, int] | None = None

    @property
    def durable(self) -> Link:
        """Return how far the segment is on the volume."""
        return Link(self.segment, self.mark.shipped, self.mark.checksum)

    @property
    def end(self) -> Link:
        """Return the last point of the history that the volume must have."""
        return self.durable if self.mark.shipped or self.previous is None else self.previous


def boot_id() -> str:
    """Return what tells this run of the operating system from every other (random(4))."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        # Without it nothing proves that the local file was not cut off by a power failure.
        return os.urandom(16).hex()


class Sidecar:
    """The file, its lock and its one record."""

    def __init__(self, database: Path) -> None:
        path = f"{database}.ship"
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._known: tuple[bytes, State] | None = None

    def __enter__(self) -> None:
        """Hold the lock; raises TimeoutError when another process keeps it too long."""
        take(self._fd, LOCK_MS)

    def __exit__(self, *_: object) -> None:
        fcntl.flock(self._fd, fcntl.LOCK_UN)

    def read(self) -> State | None:
        """Return the state, None if there is none or it is torn."""
        record, known = os.pread(self._fd, SIZE, 0), self._known
        if known is not None and known[0] == record:
            return known[1]
        fields = layout.unseal(record)
        return None if fields is None else _state(fields)

    def write(self, state: State) -> None:
        """Replace the state."""
        fields = state._asdict() | {"segment": [*state.segment], "previous": numbers(state.previous)}
        record = layout.seal(fields, SIZE)
        write_all(self._fd, record, 0)
        self._known = record, state

    def forget(self) -> None:
        """Drop the state, so that nobody trusts the local database by it."""
        os.ftruncate(self._fd, 0)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def _state(fields: dict[str, Any]) -> State | None:
    if "previous" not in fields:
        # By an earlier program: the volume has all that was acknowledged.
        return None
    base = fields["base"]
    return State(
        **{
            **fields,
            "segment": FileId(*fields["segment"]),
            "mark": Mark(**fields["mark"]),
            "previous": link(fields["previous"]),
            "phase": Phase(fields["phase"]),
            "base": None if base is None else (base[0], base[1]),
        }
    )


log = logging.getLogger(__name__)

BEAT_S: Final = 3.0
"""Seconds between heartbeats."""
STALE_S: Final = 4 * BEAT_S
"""A holder on another machine whose heartbeat stands still for so many seconds is gone."""


class VolumeLock:
    """The lock while it is held; a thread of its own keeps the heartbeat.

    ``end`` is written with each heartbeat and at the stop: a start that finds less knows that files are
    missing or cut. ``asked`` returns it while the volume is being written.

    The heartbeat goes the way of the next write: the file is opened by its path, written and synced.
    ``fault`` is what kept the last one from the volume, ``answered`` when the volume did (monotonic seconds).
    """

    def __init__(self, fd: int, mine: Holder, store_dir: Path) -> None:
        self._fd = fd
        self._mine = mine
        self._store_dir = store_dir
        self.answered = time.monotonic()
        self.fault: str | None = None
        self.end = mine.end
        self.asked: Callable[[], Link | None] = lambda: None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep_beating, name="volume-heartbeat", daemon=True)

    @property
    def token(self) -> str:
        """Return the token of this taking."""
        return self._mine.token

    @property
    def era(self) -> int:
        """Return the era that began with this taking."""
        return self._mine.era

    @classmethod
    def acquire(cls, store_dir: Path, owner: str, *, stale_s: float = STALE_S) -> VolumeLock:
        """Take the volume; raises StoreLocked naming the holder, or StoreEnvironment."""
        with told_apart("STORE_DIR", store_dir):
            store_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            fd = layout.open_file(store_dir / LOCK, os.O_RDWR)
            try:
                taken = cls(fd, _take(fd, store_dir, owner, stale_s), store_dir)
                taken._thread.start()
                return taken
            except BaseException:
                os.close(fd)
                raise

    def release(self) -> None:
        """Give the volume back."""
        self._over.set()
        self._thread.join()
        try:
            if self._is_mine(self._fd):
                _write(self._fd, self._mine, released=True, end=self.end)
        except OSError:
            # The volume is gone; its heartbeat stands still, which says the same a little later.
            pass
        finally:
            os.close(self._fd)

    def _keep_beating(self) -> None:
        beat = 0
        while not self._over.wait(BEAT_S):
            beat += 1
            before = self.fault
            try:
                self.fault = self._beat(beat)
            except OSError as error:
                self.fault = error.strerror or str(error)
            self.answered = time.monotonic()
            if self.fault != before:
                log.warning("The heartbeat on the volume: %s", self.fault or "well again")

    def _beat(self, beat: int) -> str | None:
        fd = os.open(self._store_dir / LOCK, os.O_RDWR | os.O_CLOEXEC)
        try:
            if not self._is_mine(fd):
                return "another host has taken it"
            self.end = self.asked() or self.end
            _write(fd, self._mine, beat=beat, end=self.end)
        finally:
            os.close(fd)
        room = os.statvfs(self._store_dir)
        if room.f_bavail * room.f_frsize < PROBE_BYTES:
            # Some file systems don't say, and root may have more.
            try_disk(self._store_dir / f"{LOCK}{layout.TEMPORARY}")
        return None

    def _is_mine(self, fd: int) -> bool:
        present = holder_of(os.pread(fd, LOCK_BYTES, 0))
        return present is not None and present.token == self._mine.token


def hold_database(database: Path, store_dir: Path, owner: str) -> int:
    """Take a runtime database for one host; returns the descriptor that holds it until it is closed.

    Raises StoreLocked naming the host that has it: two volumes must not be fed by one database.
    """
    for suffix in (".host", ".gate", ".ship", ".reserve"):
        must_be_file(Path(f"{database}{suffix}"))
    fd = os.open(f"{database}.host", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if _kernel_lock(fd) is False:
            by = os.pread(fd, LOCK_BYTES, 0).decode(errors="replace") or "another host"
            raise StoreLocked(
                f"LOCAL_DB_PATH {database} is in use by {by}: give each host a LOCAL_DB_PATH of its own"
            )
        if database.exists() and database.stat().st_nlink > 1:
            raise StoreLocked(
                f"LOCAL_DB_PATH {database} has a second name (a hard link), and a host may be using that: "
                "two logs damage one database. Remove the other name, or choose another LOCAL_DB_PATH"
            )
        os.ftruncate(fd, 0)
        layout.write_all(fd, f"{owner} (process {os.getpid()}, STORE_DIR {store_dir})".encode(), 0)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _take(fd: int, store_dir: Path, owner: str, stale_s: float) -> Holder:
    kernel = _kernel_lock(fd)
    before = holder_of(os.pread(fd, LOCK_BYTES, 0))
    here = boot_id()
    if kernel is False:
        raise _locked(before)
    foreign = before is not None and not before.released and (before.boot != here or kernel is None)
    if before is not None and foreign:
        _watch(fd, before, stale_s)
    era = 1 + max(layout.scan(store_dir).last_era(), 0 if before is None else before.era)
    end = None if before is None else before.end
    mine = Holder(owner, socket.gethostname(), os.getpid(), here, uuid4().hex, era, end=end)
    _write(fd, mine)
    layout.sync(store_dir)
    if foreign:
        _still_mine(fd, mine)
    return mine


def _kernel_lock(fd: int) -> bool | None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _watch(fd: int, before: Holder, stale_s: float) -> None:
    deadline = time.monotonic() + stale_s
    while time.monotonic() < deadline:
        time.sleep(0.1)
        if holder_of(os.pread(fd, LOCK_BYTES, 0)) != before:
            raise _locked(before)


def _still_mine(fd: int, mine: Holder) -> None:
    """Let another host that found the lock stale at the same moment show itself."""
    time.sleep(1.0)
    now = holder_of(os.pread(fd, LOCK_BYTES, 0))
    if now is None or now.token != mine.token:
        raise _locked(now)


def _locked(by: Holder | None) -> StoreLocked:
    return StoreLocked(
        f"STORE_DIR is in use by {by or 'another host'}: stop that host first, or give this one a volume "
        "of its own. A host that is gone is recognised by itself."
    )


def _write(fd: int, mine: Holder, **changes: Any) -> None:
    fields = {name: getattr(mine, name) for name in Holder.__slots__} | changes
    fields["end"] = numbers(fields["end"])
    layout.write_all(fd, layout.seal(fields, LOCK_BYTES), 0)
    os.fsync(fd)

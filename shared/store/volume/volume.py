"""The volume as the engine sees it: group commit for callers, upkeep in a thread of the host.

Compaction folds finished segments into a new snapshot, away from the runtime database: it reads the volume,
builds beside the runtime database, and adds one file to the volume. What a volume holds for nothing but its
own safety is bounded: two snapshots and the segments since the older one.
"""

import asyncio
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Final

import anyio
import anyio.to_thread

from shared.errors import NotDurable, PicoError, StoreDamaged, StoreEnvironment, StoreError
from shared.store.sqlite.content import is_damage
from shared.store.store import StoreOrigin
from shared.store.volume import chain, layout, snapshot
from shared.store.volume.carrier import RETRY_AFTER_S, Carrier
from shared.store.volume.layout import FileId
from shared.store.volume.lock import State, VolumeLock, hold_database
from shared.store.volume.opening import must_be, prepare

log = logging.getLogger(__name__)

LEAST_BYTES: Final = 64 << 20
"""Segments are left alone until they are longer than this and than the snapshot they continue."""
MOST_SEGMENTS: Final = 200
"""So many segments are folded however short they are: each costs a restore about a millisecond."""


class Stopped(Exception):
    """The host is ending; a compaction is begun anew another time."""


class Compaction:
    """Decides when, and does it. Runs in the host's upkeep thread and stops soon after ``over`` is set."""

    def __init__(self, carrier: Carrier, over: threading.Event, *, least_bytes: int = LEAST_BYTES) -> None:
        self._carrier = carrier
        self._over = over
        self._least_bytes = least_bytes
        self._looked_at: FileId | None = None

    def run_if_due(self) -> bool:
        """Fold the finished segments if they are many or long enough; returns whether it did.

        Raises StoreEnvironment, once a segment, where there is no room.
        """
        state = self._carrier.sidecar.read()
        if state is None or state.segment == self._looked_at:
            return False
        due = is_due(Path(state.store_dir), state.segment, self._least_bytes)
        if due:
            try:
                self._must_have_room(state)
                self._run(state)
            except Stopped:
                return False
            except (StoreDamaged, sqlite3.Error) as error:
                if self._over.is_set():
                    return False
                if isinstance(error, sqlite3.Error) and not is_damage(error):
                    raise
                log.error("The volume's history is damaged, a new snapshot is written: %s", error)
                self._renew()
        self._looked_at = state.segment
        return due

    def _run(self, state: State) -> None:
        store_dir = Path(state.store_dir)
        present = layout.read_segment(store_dir, state.segment)
        if present is None or present.previous is None:
            raise StoreDamaged(f"wal-{state.segment} doesn't say what it continues")
        built = self._carrier.database.with_name(self._carrier.database.name + ".compacted")
        try:
            chain.build(chain.plan_until(store_dir, present.previous), built, check=self._go_on)
            self._go_on()
            chain.quick_check(built, self._over.is_set)
            self._go_on()
            snapshot.publish(built, store_dir, state.segment, self._go_on)
        finally:
            chain.discard(built)
        chain.clean(store_dir, state.token)

    def _must_have_room(self, state: State) -> None:
        """Raise StoreEnvironment where the copy would take the room that turns need."""
        places = {"LOCAL_DB_PATH": self._carrier.database.parent, "STORE_DIR": Path(state.store_dir)}
        disks = len({path.stat().st_dev for path in places.values()})
        wanted = (self._carrier.database.stat().st_size + 2 * EPOCH_BYTES) * len(places) // disks
        for name, path in places.items():
            room = os.statvfs(path)
            free = room.f_bavail * room.f_frsize
            if free < wanted and room.f_blocks:  # some file systems don't say
                self._looked_at = state.segment  # with the next segment it is tried again
                raise StoreEnvironment(
                    f"{name}: {free:,} bytes are free in {path}, and to fold the history takes {wanted:,}"
                )

    def _renew(self) -> None:
        with self._carrier.held():
            self._carrier.renew(self._carrier.state())

    def _go_on(self) -> None:
        if self._over.is_set():
            raise Stopped


def is_due(store_dir: Path, present: FileId, least_bytes: int) -> bool:
    """Return whether the segments between the newest snapshot and the present segment are worth folding."""
    listing = layout.scan(store_dir)
    if not listing.snapshots:
        return False
    newest = listing.snapshots[-1]
    finished = [name for name in listing.segments if newest.id <= name < present]
    length = sum(layout.segment_path(store_dir, name).stat().st_size for name in finished)
    return len(finished) > MOST_SEGMENTS or length > max(least_bytes, newest.path.stat().st_size)


EPOCH_BYTES: Final = 4 << 20
"""The log starts anew when it is longer than this."""
ANSWERS_S: Final = 20.0
"""A volume that hasn't answered for so many seconds counts as one that can't be written."""
ROUND_S: Final = 2.0
"""Seconds between two rounds of upkeep; a round without work reads one small file."""


Waiting = list["asyncio.Future[None]"]


class Volume:
    """Ships one process's commits; with a lock it is the host's and does the upkeep too."""

    def __init__(
        self,
        carrier: Carrier,
        lock: VolumeLock | None = None,
        held: int | None = None,
        origin: StoreOrigin | None = None,
    ) -> None:
        self.origin = origin
        self._carrier = carrier
        self._lock = lock
        self._held = held
        self._failure: NotDurable | None = None
        self._shipped = -1
        # One that is used for nothing else: anyio's threads take twice the time, and each turn waits for it.
        self._thread = threading.Thread(target=self._ship_rounds, name="volume-shipping", daemon=True)
        self._rounds: SimpleQueue[tuple[Waiting, asyncio.TimerHandle, asyncio.AbstractEventLoop] | None]
        self._rounds = SimpleQueue()
        self._waiting: Waiting = []
        self._is_shipping = False
        self._is_overdue = False
        self._upkeep = None if lock is None else Upkeep(self, carrier)

    @property
    def ok(self) -> bool:
        """Return whether the last shipping succeeded and the volume answers."""
        beats = self._lock is None or self._lock.fault is None
        return self._failure is None and beats and self.silent_s < ANSWERS_S

    @property
    def shipped_all(self) -> bool:
        """Return whether the last shipping succeeded."""
        return self._failure is None

    @property
    def silent_s(self) -> float:
        """Return for how many seconds the volume hasn't answered."""
        return 0.0 if self._lock is None else time.monotonic() - self._lock.answered

    def behind(self) -> bool:
        """Return whether the log may hold frames that nobody has shipped."""
        try:
            length = self._carrier.log.stat().st_size
        except FileNotFoundError:
            return True
        if self.shipped_all and length == self._shipped:
            return False
        state = self._carrier.sidecar.read()
        return state is None or length != state.mark.shipped

    async def ship(self) -> None:
        """Return once every frame committed before the call is on the volume; raises NotDurable.

        Callers that come while one shipping is under way share the next one. None waits longer than
        ``ANSWERS_S`` for a volume that hangs; while the thread is still there, the next are refused.
        """
        if self._is_shipping and self._is_overdue:
            raise self._silent()
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(done)
        if not self._is_shipping:
            self._begin_round()
        # What is written is acknowledged, also where it ends the token of who asked for it.
        with anyio.CancelScope(shield=True):
            await done

    def _begin_round(self) -> None:
        loop = asyncio.get_running_loop()
        served, self._waiting = self._waiting, []
        self._is_shipping, self._is_overdue = True, False
        if self._thread.ident is None:
            self._thread.start()
        self._rounds.put((served, loop.call_later(ANSWERS_S, self._give_up, served), loop))

    def _ship_rounds(self) -> None:
        while (asked := self._rounds.get()) is not None:
            served, overdue, loop = asked
            fault = None
            try:
                self.ship_now()
            except Exception as error:  # noqa: BLE001 - raised to whoever asked
                fault = error
            self._is_shipping = False
            with suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(self._end_round, served, overdue, fault)

    def _end_round(self, served: Waiting, overdue: asyncio.TimerHandle, fault: Exception | None) -> None:
        overdue.cancel()
        _settle(served, fault)
        if self._waiting and not self._is_shipping:
            self._begin_round()

    def _give_up(self, served: Waiting) -> None:
        """Let go of those who wait; the thread goes on."""
        self._is_overdue = True
        silent = self._silent()
        self._note(silent)
        waiting, self._waiting = self._waiting, []
        _settle([*served, *waiting], silent)

    def _silent(self) -> NotDurable:
        beats = self._lock is not None and self.silent_s < ANSWERS_S / 2
        what = "local disk" if beats else "volume"
        return NotDurable(f"The {what} does not answer", retry_after=RETRY_AFTER_S)

    def ship_now(self) -> None:
        """Like ``ship``, blocking."""
        try:
            state = self._carrier.ship()
        except NotDurable as error:
            self._note(error)
            raise
        if self._failure is not None:
            log.warning("The volume takes writes again")
        self._failure = None
        self._shipped = state.mark.shipped
        if self._upkeep is not None and self._shipped > EPOCH_BYTES:
            self._upkeep.wanted.set()

    def _note(self, error: NotDurable) -> None:
        if self._failure is None:
            log.error("Not durable: %s", error)
        self._failure = error

    async def close(self, let_go: Callable[[], None]) -> None:
        """Ship what is left, let the database and the volume go; raises NotDurable after doing so."""
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self.close_now, let_go)

    def close_now(self, let_go: Callable[[], None]) -> None:
        """Like ``close``, blocking."""
        self._rounds.put(None)
        if self._upkeep is not None:
            self._upkeep.stop()
        try:
            self._carrier.close(let_go)
        finally:
            if self._lock is not None:
                self._lock.end = self._carrier.ended or self._lock.end
                self._lock.release()
            if self._held is not None:
                os.close(self._held)

    def start_upkeep(self) -> None:
        """Begin checkpoints, compaction and recovery from failures."""
        if self._upkeep is not None:
            self._upkeep.start()


def _settle(waiting: Waiting, fault: Exception | None) -> None:
    for done in waiting:
        if done.done():  # who waited was cancelled
            continue
        if fault is None:
            done.set_result(None)
        else:
            done.set_exception(fault)


class Upkeep:
    """The host's thread that keeps the log short and the chain of segments too."""

    def __init__(self, volume: Volume, carrier: Carrier) -> None:
        self.wanted = threading.Event()
        self._volume = volume
        self._carrier = carrier
        self._over = threading.Event()
        self._compaction = Compaction(carrier, self._over)
        self._thread = threading.Thread(target=self._run, name="volume-upkeep", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self.wanted.set()
        self._thread.start()

    def stop(self) -> None:
        """End the thread, also in the middle of a compaction."""
        self._over.set()
        self.wanted.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._over.is_set():
            self.wanted.wait(ROUND_S)
            self.wanted.clear()
            if not self._over.is_set():
                self._round()

    def _round(self) -> None:
        try:
            if not self._volume.shipped_all:
                self._volume.ship_now()
            state = self._carrier.sidecar.read()
            if state is not None and state.mark.shipped > EPOCH_BYTES:
                self._carrier.roll_over()
            self._compaction.run_if_due()
        except (PicoError, StoreError, OSError, sqlite3.Error) as error:
            log.warning("Upkeep of the volume will be tried again: %s", error)


def open_host_volume(store_dir: Path, database: Path, owner: str, store_id: str | None = None) -> Volume:
    """Take the volume, make ``database`` the newest good copy, and return what ships it.

    ``store_id``: the only store that may be on the volume, None for any, or a new one.
    """
    must_be(store_dir, store_id)
    with ExitStack() as opened:
        lock = VolumeLock.acquire(store_dir, owner)
        opened.callback(lock.release)
        database.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        held = hold_database(database, store_dir, owner)
        opened.callback(os.close, held)
        carrier = Carrier(database)
        opened.callback(carrier.abandon)
        origin = prepare(carrier, store_dir, token=lock.token, era=lock.era)
        lock.asked = carrier.end
        opened.pop_all()
        return Volume(carrier, lock, held, origin)


def join_volume(database: Path, store_dir: Path | None) -> Volume | None:
    """Return what ships the database beside a host, or after one; None when nothing names a volume."""
    database.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with ExitStack() as opened:
        carrier = Carrier(database)
        opened.callback(carrier.abandon)
        with carrier.held():
            state = carrier.sidecar.read()
            if state is not None and carrier.vouched(state):
                carrier.resume(state)
                opened.pop_all()
                return Volume(carrier)
    if store_dir is None and state is not None:
        store_dir = Path(state.store_dir)
    return None if store_dir is None else _prepare_alone(store_dir, database)


def _prepare_alone(store_dir: Path, database: Path) -> Volume:
    lock = VolumeLock.acquire(store_dir, "tool server")
    try:
        carrier = Carrier(database)
        prepare(carrier, store_dir, token=lock.token, era=lock.era)
    finally:
        lock.release()
    return Volume(carrier)

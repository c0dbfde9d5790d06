"""From a volume back to a database: a snapshot and the segments that continue it, one by one.

Each segment names the one before and how much of it counts, so the way back from the newest one is
certain. SQLite's own recovery applies a segment: it stops at the first frame that isn't whole.
"""

import logging
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shared.errors import StoreDamaged, StoreEnvironment
from shared.store.sqlite.content import told_apart
from shared.store.volume import layout, snapshot, wal
from shared.store.volume.layout import FileId, Link, Listing, Segment, Snapshot, holder

log = logging.getLogger(__name__)

GENERATIONS: Final = 2
"""Snapshots that are kept: if the newest is damaged, the one before and its segments lose nothing."""


@dataclass(frozen=True, slots=True)
class Step:
    """A segment to apply; ``end`` when a later segment says where it ends, else all that is whole counts."""

    segment: Segment
    end: Link | None


@dataclass(frozen=True, slots=True)
class Plan:
    """One way to rebuild the database as it was at the end of its steps."""

    snapshot: Snapshot
    steps: list[Step]


def rebuild(store_dir: Path, target: Path) -> Link:
    """Build the newest database that the volume holds at ``target`` and return where it ends.

    A damaged file is passed over, with a warning, where others make the very same database. Raises
    StoreDamaged when anything that was acknowledged would be missing.
    """
    # What it says of the end is older than all that is read after it.
    by = holder(store_dir)
    listing = layout.scan(store_dir)
    newest = _newest(store_dir, listing)
    faults: list[str] = []
    try:
        for plan in _plans(store_dir, listing.snapshots, newest, None):
            try:
                end = build(plan, target)
            except StoreDamaged as error:
                faults.append(error.what)
            else:
                _must_reach(end, None if by is None else by.end, store_dir)
                for fault in faults:
                    log.warning("%s. What came before it makes the same database", fault)
                return end
    except StoreDamaged as error:
        faults.append(error.what)
    raise StoreDamaged("; ".join(dict.fromkeys(faults)))


def wanted_bytes(store_dir: Path) -> int:
    """Return how many bytes a rebuild writes at most."""
    listing = layout.scan(store_dir)
    logs = [layout.segment_path(store_dir, name).stat().st_size for name in listing.segments]
    return (
        sum(logs)
        + max(logs, default=0)
        + max((each.path.stat().st_size for each in listing.snapshots), default=0)
    )


def plan_until(store_dir: Path, end: Link) -> Plan:
    """Return the way to the database as it was where ``end`` points; raises StoreDamaged."""
    return next(_plans(store_dir, layout.scan(store_dir).snapshots, end.id, end))


def rebuild_from_oldest(store_dir: Path, target: Path) -> Link:
    """Like ``rebuild``, from the oldest snapshot: this reads every file that may once be needed."""
    listing, plans = layout.scan(store_dir), list[Plan]()
    try:
        plans.extend(_plans(store_dir, listing.snapshots, _newest(store_dir, listing), None))
    except StoreDamaged:
        # Beyond the oldest snapshot there is nothing any more.
        if not plans or plans[-1].snapshot != listing.snapshots[0]:
            raise
    return build(plans[-1], target)


def build(plan: Plan, target: Path, *, check: Callable[[], object] = bool) -> Link:
    """Carry out a plan at ``target`` and return where the database stands; raises StoreDamaged."""
    discard(target)
    if not snapshot.fits(plan.snapshot, snapshot.copy(plan.snapshot.path, target)):
        raise StoreDamaged(f"{plan.snapshot.path} is damaged: its content has another checksum than its name")
    end = Link(plan.snapshot.id, 0, 0)
    for step in plan.steps:
        check()
        end = _apply(step, target)
    return end


def quick_check(database: Path, stopped: Callable[[], bool] = bool) -> None:
    """Raise StoreDamaged unless SQLite finds the database's structure sound.

    It reads everything; when ``stopped`` turns true it ends early with sqlite3.OperationalError.
    """
    with closing(sqlite3.connect(database)) as connection:
        connection.set_progress_handler(stopped, 100_000)
        verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if verdict != "ok":
        raise StoreDamaged(f"{database} is damaged: {verdict}")


def back_up(connection: sqlite3.Connection, database: Path) -> Path:
    """Copy the database of a connection to a file beside it, which the caller discards; nobody writes."""
    copy = database.with_name(database.name + ".snapshot")
    discard(copy)
    with told_apart("LOCAL_DB_PATH", database.parent, lambda: database.stat().st_size):
        with closing(sqlite3.connect(copy)) as target:
            connection.backup(target)
        quick_check(copy)
    return copy


def discard(database: Path) -> None:
    """Remove a database with its log, the log first: it must never be replayed onto another file."""
    for suffix in ("-wal", "-shm", ""):
        database.with_name(database.name + suffix).unlink(missing_ok=True)


def _newest(store_dir: Path, listing: Listing) -> FileId:
    """Return the file at which the history ends."""
    snapshots = listing.snapshots[-1:]
    for name in reversed(listing.segments):
        # A segment without a frame may be left over from a host that died before it moved on to it.
        if layout.has_frames(store_dir, name):
            return max(name, *(each.id for each in snapshots))
    if not snapshots:
        raise StoreDamaged(f"{store_dir} has no snapshot")
    return snapshots[0].id


def _plans(store_dir: Path, snapshots: list[Snapshot], name: FileId, end: Link | None) -> Iterator[Plan]:
    """Yield the ways to a point of the history, the shortest first; raises StoreDamaged where one breaks."""
    steps: list[Step] = []
    while True:
        found = layout.read_segment(store_dir, name)
        if found is not None and (end is None or end.length):
            steps.insert(0, Step(found, end))
        elif end is not None and end.length:
            raise StoreDamaged(f"{layout.segment_path(store_dir, name)} is missing")
        here = [each for each in snapshots if each.id == name]
        yield from (Plan(each, list(steps)) for each in here)
        if found is None or found.previous is None:
            if here:
                return
            raise StoreDamaged(f"snapshot-{name} is missing in {store_dir}")
        name, end = found.previous.id, found.previous


def _must_reach(end: Link, least: Link | None, store_dir: Path) -> None:
    """Raise StoreDamaged unless the history goes as far as the last host wrote beside its heartbeat."""
    if least is None or (end.id, end.length) >= (least.id, least.length):
        return
    path = layout.segment_path(store_dir, least.id)
    if not path.exists():
        raise StoreDamaged(f"{path if least.length else f'snapshot-{least.id} in {store_dir}'} is missing")
    raise _cut(path, least.length)


def _apply(step: Step, target: Path) -> Link:
    found, end = step.segment, step.end
    snapshot.copy(
        found.path, wal.log_path(target), skip=layout.HEAD, length=None if end is None else end.length
    )
    with closing(sqlite3.connect(target, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous=OFF")
        _, frames, written = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        page_size = int(connection.execute("PRAGMA page_size").fetchone()[0])
    if written != frames:
        raise StoreEnvironment(f"{found.path.name} could not be written into {target}")
    discard_log(target)
    frame_size = wal.FRAME.size + page_size
    length = wal.HEADER.size + frames * frame_size if frames > 0 else 0
    checksum = layout.checksum_before(found, length, frame_size) if length else 0
    reached = Link(found.id, length, checksum or 0)
    if length < (found.durable if end is None else end).length or end not in (None, reached):
        raise _cut(found.path, (end or found.durable).length)
    if end is None and found.length > length:
        log.warning(
            "%d bytes at the end of %s are dropped: their writing was cut off, and nobody was told of them",
            found.length - length,
            found.path.name,
        )
    return reached


def _cut(path: Path, length: int) -> StoreDamaged:
    with path.open("rb") as file:
        file.seek(layout.HEAD)
        place = next((each.offset for each in wal.frames(file) if not each.sound), None)
    if place is not None:
        return StoreDamaged(f"{path} is damaged at byte {layout.HEAD + place}")
    return StoreDamaged(
        f"{path} is cut off at byte {path.stat().st_size}: it went to byte {layout.HEAD + length}"
    )


def discard_log(database: Path) -> None:
    """Remove what is left of a database's log."""
    for suffix in ("-wal", "-shm"):
        database.with_name(database.name + suffix).unlink(missing_ok=True)


def clean(store_dir: Path, token: str) -> None:
    """Remove what no restore needs any more, as long as the volume is still this host's.

    Nothing goes before all that stays was read and found sound.
    """
    present = holder(store_dir)
    if present is None or present.token != token:
        return
    for path in _superfluous(store_dir, layout.scan(store_dir)):
        path.unlink(missing_ok=True)


def sweep(store_dir: Path) -> None:
    """Remove what a host that died left half written; only for who holds the volume."""
    for kind in ("snapshot-*", "wal-*", "store.json", "host.lock"):
        for path in store_dir.glob(f"{kind}{layout.TEMPORARY}"):
            path.unlink(missing_ok=True)


def _superfluous(store_dir: Path, listing: Listing) -> list[Path]:
    if len(listing.snapshots) <= GENERATIONS:
        return []
    kept = listing.snapshots[-GENERATIONS:]
    damaged = [each.path.name for each in kept if not snapshot.intact(each)]
    if damaged:
        log.error("%s is damaged: nothing older is removed from the volume", " and ".join(damaged))
        return []
    oldest = kept[0].id
    snapshots = [each.path for each in listing.snapshots if each.id < oldest]
    segments = [layout.segment_path(store_dir, name) for name in listing.segments if name < oldest]
    return snapshots + segments

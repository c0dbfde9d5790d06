"""From a volume back to a database: a snapshot and the segments that continue it, one by one.

Each segment names the one before and how much of it counts, so the way back from the newest one is
certain. SQLite's own recovery applies a segment: it stops at the first frame that isn't whole.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from shared.errors import StoreError
from shared.store.sqlite.volume import layout, segment, snapshot, wal
from shared.store.sqlite.volume.layout import FileId, Listing, Snapshot
from shared.store.sqlite.volume.segment import Link, Segment

log = logging.getLogger(__name__)


class Damaged(Exception):
    """A file on the volume is not what it has to be."""


@dataclass(frozen=True, slots=True)
class Step:
    """A segment to apply; ``length`` in bytes of log when a later segment says it, else all that is whole."""

    segment: Segment
    length: int | None


@dataclass(frozen=True, slots=True)
class Plan:
    """One way to rebuild the database as it was at ``head``."""

    head: FileId
    snapshot: Snapshot
    steps: list[Step]


def rebuild(store_dir: Path, target: Path) -> Link:
    """Build the newest database that the volume holds at ``target`` and return where it ends.

    Damage is passed over with a warning as long as an older file helps; raises StoreError when none does.
    """
    listing = layout.scan(store_dir)
    heads = _heads(store_dir, listing)
    for strict in (True, False):
        for number, plan in enumerate(_plans(store_dir, listing, heads)):
            try:
                end = build(plan, target, strict=strict)
            except (Damaged, sqlite3.DatabaseError, OSError) as error:
                log.warning("The volume's %s cannot be used: %s", plan.snapshot.path.name, error)
                continue
            if plan.head != heads[0]:
                log.warning("What followed segment %s on the volume is lost", end.id)
            if number or not strict:
                log.warning("Restored from %s and %d log segments", plan.snapshot.path.name, len(plan.steps))
            return end
    raise StoreError(
        "Nothing on STORE_DIR can be restored: every snapshot is damaged. Put a backup there "
        "(picoclaw store restore), or move its files away to begin with an empty database."
    )


def plan_until(store_dir: Path, end: Link) -> Plan:
    """Return the way to the database as it was where ``end`` points; raises Damaged."""
    listing = layout.scan(store_dir)
    for plan in _plans_from(store_dir, listing.snapshots, end.id, end.length):
        return plan
    raise Damaged(f"no snapshot leads to wal-{end.id}")


def build(
    plan: Plan, target: Path, *, strict: bool = True, check: Callable[[], None] = snapshot.go_on
) -> Link:
    """Carry out a plan at ``target`` and return where the database stands; raises Damaged.

    Not ``strict``: a snapshot with a wrong checksum will do when SQLite finds its structure sound.
    """
    discard(target)
    crc = snapshot.copy(plan.snapshot.path, target)
    if strict and crc != plan.snapshot.crc:
        raise Damaged("its content doesn't match its checksum")
    end = Link(plan.snapshot.id, 0, 0)
    for step in plan.steps:
        check()
        end = _apply(step, target)
    if not strict:
        quick_check(target)
    return end


def quick_check(database: Path, stopped: Callable[[], bool] = bool) -> None:
    """Raise Damaged unless SQLite finds the database's structure sound.

    It reads everything; when ``stopped`` turns true it ends early with sqlite3.OperationalError.
    """
    connection = sqlite3.connect(database)
    connection.set_progress_handler(stopped, 100_000)
    try:
        verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    finally:
        connection.close()
    if verdict != "ok":
        raise Damaged(verdict)


def discard(database: Path) -> None:
    """Remove a database with its log, the log first: it must never be replayed onto another file."""
    for suffix in ("-wal", "-shm", ""):
        database.with_name(database.name + suffix).unlink(missing_ok=True)


def _plans(store_dir: Path, listing: Listing, heads: list[FileId]) -> Iterator[Plan]:
    for head in heads:
        yield from _plans_from(store_dir, listing.snapshots, head, None)


def _heads(store_dir: Path, listing: Listing) -> list[FileId]:
    # A segment without a frame may be left over from a host that died before it moved on to it.
    filled = [name for name in listing.segments if segment.has_frames(store_dir, name)]
    return sorted({*filled, *(found.id for found in listing.snapshots)}, reverse=True)


def _plans_from(
    store_dir: Path, snapshots: list[Snapshot], head: FileId, length: int | None
) -> Iterator[Plan]:
    steps: list[Step] = []
    name: FileId | None = head
    while name is not None:
        found = segment.read(store_dir, name)
        if found is not None and found.length > 0 and length != 0:
            steps.insert(0, Step(found, length))
        for candidate in (each for each in snapshots if each.id == name):
            yield Plan(head, candidate, list(steps))
        previous = None if found is None else found.previous
        name, length = (None, None) if previous is None else (previous.id, previous.length)


def _apply(step: Step, target: Path) -> Link:
    found = step.segment
    if step.length is not None and found.length < step.length:
        raise Damaged(f"wal-{found.id} is shorter than it was")
    snapshot.copy(found.path, wal.log_path(target), skip=segment.HEAD, length=step.length)
    connection = sqlite3.connect(target, isolation_level=None)
    try:
        connection.execute("PRAGMA synchronous=OFF")
        frames = int(connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()[1])
        page_size = int(connection.execute("PRAGMA page_size").fetchone()[0])
    finally:
        connection.close()
    discard_log(target)
    frame_size = wal.FRAME.size + page_size
    length = wal.HEADER.size + frames * frame_size if frames > 0 else 0
    if step.length is not None and length != step.length:
        raise Damaged(f"wal-{found.id} is torn")
    checksum = segment.checksum_before(found, length, frame_size) if length else 0
    return Link(found.id, length, checksum or 0)


def discard_log(database: Path) -> None:
    """Remove what is left of a database's log."""
    for suffix in ("-wal", "-shm"):
        database.with_name(database.name + suffix).unlink(missing_ok=True)

"""At the start: which copy of the database is the newest good one, and making it the runtime database."""

import logging
import os
import re
import sqlite3
import time
from pathlib import Path
from typing import Final, Literal
from uuid import uuid4

from shared import jsons
from shared.errors import StoreDamaged, StoreError, StoreMismatch
from shared.store.sqlite.content import is_of_breakcafe, must_be_file, told_apart
from shared.store.store import StoreOrigin
from shared.store.volume import chain, layout, snapshot, wal
from shared.store.volume.carrier import Carrier
from shared.store.volume.layout import FileId, Listing, holder
from shared.store.volume.lock import State, boot_id
from shared.store.volume.wal import Mark

log = logging.getLogger(__name__)

COPY_NAME: Final = re.compile(r"before-migration-from-(\d+)\.db")
IDENTITY: Final = "store.json"
"""Names the store on a volume, so that the runtime database of another one is never taken for it."""

OURS: Final = (IDENTITY, layout.LOCK, layout.SNAPSHOT, layout.SEGMENT, COPY_NAME)
"""The names of a store's files on its volume."""

SCRATCH: Final = (".snapshot", ".restored", ".compacted")
"""Copies beside the runtime database that only a host which died left there."""

NO_MARK: Final = Mark(inode=0, salts=0, page_size=4096)

Verdict = Literal["continue", "take local", "restore"]
"""The runtime database is what the volume has, or goes on from there; it is the newer copy, or the only one;
the volume is the newer copy, or the only one that can be trusted.
"""


def prepare(carrier: Carrier, store_dir: Path, *, token: str, era: int) -> StoreOrigin:
    """Make the runtime database the newest good copy and its shipping ready; raises StoreError."""
    database = carrier.database
    with carrier.held():
        chain.sweep(store_dir)
        expire_copies(store_dir)
        for suffix in SCRATCH:
            chain.discard(database.with_name(database.name + suffix))
        state, listing = carrier.sidecar.read(), layout.scan(store_dir)
        ours = state is not None and state.store_dir == str(store_dir.absolute())
        found = state if state is not None and ours and carrier.vouched(state) else None
        verdict = judge(found, store_dir, listing, database)
        there = identity(store_dir)
        if verdict == "continue" and found is not None:
            carrier.resume(found._replace(token=token, era=era))
            return StoreOrigin(found.lineage, new=False)
        if verdict == "restore" and state is not None and found is None:
            log.warning("The runtime database %s doesn't continue what the volume has", database.name)
        if listing.empty and found is None:
            _must_be_new(store_dir, there, state, database)
        lineage, era = there or uuid4().hex, max(era, found.era + 1 if found else 0)
        if there is None and listing.empty and found is not None:
            lineage = found.lineage
        state = State(
            str(store_dir.absolute()), lineage, token, era, boot_id(), 0, FileId(era, 0), NO_MARK, None
        )
        if verdict == "restore":
            _restore(carrier, state)
        else:
            _take_local(carrier, state)
        if there is None:
            # After the first snapshot: an identity without one means that files are missing.
            rename_store(store_dir, lineage)
            if not listing.empty:
                log.warning(
                    "STORE_DIR %s had no readable %s: the store is %s from now on",
                    store_dir,
                    IDENTITY,
                    lineage,
                )
        return StoreOrigin(lineage, new=listing.empty and found is None)


def judge(found: State | None, store_dir: Path, listing: Listing, database: Path) -> Verdict:
    """Decide between the runtime database and the volume."""
    if found is None:
        return "take local" if listing.empty else "restore"
    if listing.empty:
        log.warning(
            "STORE_DIR %s was empty: it gets all of its store again, from LOCAL_DB_PATH %s. "
            "If its volume isn't mounted, stop this host and mount it",
            store_dir,
            database,
        )
        return "take local"
    if found.lineage != identity(store_dir):
        log.warning("STORE_DIR holds another store than %s: the volume's is used", database.name)
        return "restore"
    later = (each for each in listing.segments if each > found.segment)
    if any(each.id > found.segment for each in listing.snapshots):
        return "restore"
    if any(layout.has_frames(store_dir, each) for each in later):
        return "restore"
    if not _on_volume(found, store_dir):
        log.warning("The volume is behind the runtime database %s, which is used", database.name)
        return "take local"
    return "continue"


def identity(store_dir: Path) -> str | None:
    """Return the name of the store on a volume, None if it has none."""
    try:
        return str(jsons.loads((store_dir / IDENTITY).read_bytes())["lineage"])
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return None


def must_hold_files(store_dir: Path) -> None:
    """Raise StoreEnvironment for what has the name of one of a store's files and is none."""
    with told_apart("STORE_DIR", store_dir):
        for path in store_dir.iterdir() if store_dir.is_dir() else ():
            if any(re.fullmatch(name, path.name) for name in OURS):
                must_be_file(path)


def must_be(store_dir: Path, store_id: str | None) -> None:
    """Raise StoreMismatch unless the volume holds the store that STORE_ID names; any will do without one.

    Raises StoreEnvironment, as ``must_hold_files`` does.
    """
    must_hold_files(store_dir)
    with told_apart("STORE_DIR", store_dir):
        there = identity(store_dir)
    if store_id is not None and there != store_id:
        raise StoreMismatch(
            f"STORE_DIR {store_dir} holds {f'the store {there}' if there else 'no store'}, and STORE_ID "
            f"names {store_id}: mount the volume of that store, or change STORE_ID"
        )


def rename_store(store_dir: Path, lineage: str | None = None) -> str:
    """Give the store on a volume a new identity: runtime databases of the old one aren't trusted any more."""
    lineage = lineage or uuid4().hex
    layout.write_durably(store_dir / IDENTITY, jsons.dump_bytes({"lineage": lineage}) + b"\n")
    return lineage


def _must_be_new(store_dir: Path, there: str | None, state: State | None, database: Path) -> None:
    """Raise when a volume without a snapshot or segment had a store before, or should be another one."""
    for old in (store_dir / "messages.db", database):
        if is_of_breakcafe(old):
            raise StoreMismatch(
                f"{old} is a database of breakcafe/picoclaw, which this program doesn't write: take another "
                "STORE_DIR and LOCAL_DB_PATH, and run `picoclaw import breakcafe` with the folder of its data"
            )
    by = holder(store_dir)
    if there is not None or (by is not None and by.end is not None):
        raise StoreDamaged(
            f"STORE_DIR {store_dir} had a store, and all its snapshots and segments are missing"
        )
    if state is not None:
        raise StoreMismatch(
            f"STORE_DIR {store_dir} is empty, and LOCAL_DB_PATH {database} belongs to the store that was in "
            f"{state.store_dir}: mount that volume. If it is lost, `picoclaw store restore {database}` makes "
            "what the local disk has its newest state. For a store of its own choose another LOCAL_DB_PATH"
        )


def _on_volume(state: State, store_dir: Path) -> bool:
    found = layout.read_segment(store_dir, state.segment)
    if found is None:
        return False
    if state.mark.shipped == 0:
        return True
    checksum = layout.checksum_before(found, state.mark.shipped, wal.FRAME.size + state.mark.page_size)
    return checksum == state.mark.checksum


def _restore(carrier: Carrier, state: State) -> None:
    database, store_dir = carrier.database, Path(state.store_dir)
    built = database.with_name(database.name + ".restored")
    try:
        with told_apart("LOCAL_DB_PATH", database.parent, lambda: chain.wanted_bytes(store_dir)):
            end = chain.rebuild(store_dir, built)
        # From here to begin_after nothing vouches for the local files, so a crash leads back to here.
        carrier.sidecar.forget()
        chain.discard(database)
        built.replace(database)
    finally:
        chain.discard(built)
    carrier.begin_after(state._replace(inode=database.stat().st_ino), end)


def _take_local(carrier: Carrier, state: State) -> None:
    database = carrier.database
    if not database.exists():
        chain.discard_log(database)
        os.close(os.open(database, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    carrier.renew(state._replace(inode=database.stat().st_ino))


KEPT_DAYS: Final = 30


def keep_copy(store_dir: Path, database: Path, connection: sqlite3.Connection, version: int) -> None:
    """Copy the database of a connection, which has this schema version, to the volume; nobody writes."""
    copy = chain.back_up(connection, database)
    try:
        snapshot.seal(copy)
        path = store_dir / f"before-migration-from-{version}.db"
        room = told_apart("STORE_DIR", store_dir, lambda: copy.stat().st_size)
        with room, layout.durably(path) as temporary:
            snapshot.copy(copy, temporary)
    finally:
        chain.discard(copy)
    for earlier in kept_copies(store_dir)[:-1]:
        earlier.unlink()


def kept_copies(store_dir: Path) -> list[Path]:
    """Return the copies on a volume, the newest last."""
    found = [path for path in store_dir.iterdir() if COPY_NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: path.stat().st_mtime)


def newest_copy(store_dir: Path) -> tuple[Path, int]:
    """Return the copy to go back to and its schema version; raises StoreError when there is none."""
    found = kept_copies(store_dir) if store_dir.is_dir() else []
    if not found:
        raise StoreError(
            f"There is no copy from before a migration in {store_dir}: a host makes one when it migrates, "
            f"and it is kept for {KEPT_DAYS} days. `picoclaw store restore FILE` takes a backup"
        )
    return found[-1], int(COPY_NAME.sub(r"\1", found[-1].name))


def expire_copies(store_dir: Path) -> None:
    """Remove the copies that were kept long enough."""
    for path in kept_copies(store_dir):
        if path.stat().st_mtime < time.time() - KEPT_DAYS * 24 * 3600:
            path.unlink()

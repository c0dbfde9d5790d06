"""At the start: which copy of the database is the newest good one, and making it the runtime database."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from enum import Enum, auto
from pathlib import Path
from typing import Final
from uuid import uuid4

from shared import jsons
from shared.errors import StoreError
from shared.store.sqlite.volume import chain, layout, segment
from shared.store.sqlite.volume.carrier import Carrier
from shared.store.sqlite.volume.layout import FileId, Listing
from shared.store.sqlite.volume.sidecar import State, boot_id
from shared.store.sqlite.volume.wal import Mark

log = logging.getLogger(__name__)

IDENTITY: Final = "store.json"
"""Names the store on a volume, so that the runtime database of another one is never taken for it."""

NO_MARK: Final = Mark(salts=0, page_size=4096)


class Verdict(Enum):
    """What to do with the runtime database."""

    CONTINUE = auto()
    """It is what the volume has, or goes on from there."""
    TAKE_LOCAL = auto()
    """It is the newer copy, or the only one."""
    RESTORE = auto()
    """The volume is the newer copy, or the only one that can be trusted."""


def prepare(carrier: Carrier, store_dir: Path, *, token: str, era: int) -> None:
    """Make the runtime database the newest good copy and its shipping ready; raises StoreError."""
    database = carrier.database
    with carrier.held():
        listing = layout.scan(store_dir)
        found = _trusted(carrier, store_dir)
        verdict = judge(found, store_dir, listing, database)
        lineage = _lineage(store_dir)
        if verdict is Verdict.CONTINUE and found is not None:
            state = replace(found, token=token, era=era)
            carrier.sidecar.write(state)
            carrier.resume(state)
            return
        state = State(
            str(store_dir.absolute()), lineage, token, era, boot_id(), 0, FileId(era, 0), NO_MARK, None
        )
        if verdict is Verdict.RESTORE:
            _restore(carrier, state)
        else:
            _take_local(carrier, state, trusted=found is not None)


def judge(found: State | None, store_dir: Path, listing: Listing, database: Path) -> Verdict:
    """Decide between the runtime database and the volume."""
    if found is None:
        return Verdict.TAKE_LOCAL if listing.empty else Verdict.RESTORE
    if listing.empty:
        return Verdict.TAKE_LOCAL
    if found.lineage != identity(store_dir):
        log.warning("STORE_DIR holds another store than %s: the volume's is used", database.name)
        return Verdict.RESTORE
    newer = [each.id for each in listing.snapshots if each.id > found.segment]
    newer += [
        each for each in listing.segments if each > found.segment and segment.has_frames(store_dir, each)
    ]
    if newer:
        return Verdict.RESTORE
    if not _on_volume(found, store_dir):
        log.warning("The volume is behind the runtime database %s, which is used", database.name)
        return Verdict.TAKE_LOCAL
    return Verdict.CONTINUE


def identity(store_dir: Path) -> str | None:
    """Return the name of the store on a volume, None if it has none."""
    try:
        return str(jsons.loads((store_dir / IDENTITY).read_bytes())["lineage"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def rename_store(store_dir: Path) -> str:
    """Give the store on a volume a new identity: runtime databases of the old one aren't trusted any more."""
    lineage = uuid4().hex
    layout.write_durably(store_dir / IDENTITY, jsons.dump_bytes({"lineage": lineage}) + b"\n")
    return lineage


def _lineage(store_dir: Path) -> str:
    return identity(store_dir) or rename_store(store_dir)


def _trusted(carrier: Carrier, store_dir: Path) -> State | None:
    """Return the sidecar's state if it is about this database, this volume and this run of the system."""
    state = carrier.sidecar.read()
    if state is None or state.boot != boot_id() or state.store_dir != str(store_dir.absolute()):
        return None
    try:
        inode = carrier.database.stat().st_ino
    except FileNotFoundError:
        return None
    return state if inode == state.inode else None


def _on_volume(state: State, store_dir: Path) -> bool:
    found = segment.read(store_dir, state.segment)
    if found is None:
        return False
    if state.mark.shipped == 0:
        return True
    checksum = segment.checksum_before(found, state.mark.shipped, state.mark.frame_size)
    return checksum == state.mark.checksum


def _restore(carrier: Carrier, state: State) -> None:
    database = carrier.database
    built = database.with_name(database.name + ".restored")
    end = chain.rebuild(Path(state.store_dir), built)
    # From here to begin_after nothing vouches for the local files, so a crash leads back to here.
    carrier.sidecar.forget()
    chain.discard(database)
    built.replace(database)
    carrier.begin_after(state, end)


def _take_local(carrier: Carrier, state: State, *, trusted: bool) -> None:
    database = carrier.database
    if not database.exists():
        chain.discard_log(database)
        os.close(os.open(database, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    elif not trusted:
        _must_be_sound(database)
    carrier.sidecar.forget()
    carrier.renew(state)


def _must_be_sound(database: Path) -> None:
    try:
        chain.quick_check(database)
    except chain.Damaged as error:
        raise StoreError(
            f"The database {database.name} is damaged and STORE_DIR has no copy of it: {error}"
        ) from error

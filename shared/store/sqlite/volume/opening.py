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
from shared.store.sqlite.volume.cleaning import sweep
from shared.store.sqlite.volume.layout import FileId, Listing
from shared.store.sqlite.volume.sidecar import State, boot_id
from shared.store.sqlite.volume.wal import Mark

log = logging.getLogger(__name__)

IDENTITY: Final = "store.json"
"""Names the store on a volume, so that the runtime database of another one is never taken for it."""

SCRATCH: Final = (".snapshot", ".restored", ".compacted")
"""Copies beside the runtime database that only a host which died left there."""

NO_MARK: Final = Mark(inode=0, salts=0, page_size=4096)


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
        sweep(store_dir)
        for suffix in SCRATCH:
            chain.discard(database.with_name(database.name + suffix))
        state = carrier.sidecar.read()
        found = state if state is not None and _trusted(carrier, state, store_dir) else None
        verdict = judge(found, store_dir, layout.scan(store_dir), database)
        if verdict is Verdict.CONTINUE and found is not None:
            carrier.resume(replace(found, token=token, era=era))
            return
        if verdict is Verdict.RESTORE and state is not None and found is None:
            log.warning("The runtime database %s doesn't continue what the volume has", database.name)
        state = State(
            str(store_dir.absolute()), _lineage(store_dir), token, era, boot_id(), 0, FileId(era, 0), NO_MARK
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


def _trusted(carrier: Carrier, state: State, store_dir: Path) -> bool:
    return state.store_dir == str(store_dir.absolute()) and carrier.vouched(state)


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
    carrier.begin_after(replace(state, inode=database.stat().st_ino), end)


def _take_local(carrier: Carrier, state: State, *, trusted: bool) -> None:
    database = carrier.database
    if not database.exists():
        chain.discard_log(database)
        os.close(os.open(database, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    elif not trusted:
        _must_be_sound(database)
    carrier.renew(replace(state, inode=database.stat().st_ino))


def _must_be_sound(database: Path) -> None:
    try:
        chain.quick_check(database)
    except chain.Damaged as error:
        raise StoreError(
            f"The database {database.name} is damaged and STORE_DIR has no copy of it: {error}"
        ) from error

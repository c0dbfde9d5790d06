"""Removing from a volume what no restore needs any more."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

from shared.store.volume import layout, rollback, snapshot
from shared.store.volume.layout import Listing
from shared.store.volume.lock import holder

log = logging.getLogger(__name__)

GENERATIONS: Final = 2
"""Snapshots that are kept: if the newest is damaged, the one before and its segments lose nothing."""


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
    """Remove what a host that died left half written, and old copies; only for who holds the volume."""
    for kind in ("snapshot-*", "wal-*", "store.json", "host.lock"):
        for path in store_dir.glob(f"{kind}{layout.TEMPORARY}"):
            path.unlink(missing_ok=True)
    rollback.expire(store_dir)


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

"""Compaction: folding finished segments into a new snapshot, away from the runtime database.

It reads the volume, builds beside the runtime database, and adds one file to the volume. What a volume
holds for nothing but its own safety is bounded: two snapshots and the segments since the older one.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from pathlib import Path
from typing import Final

from shared.errors import StoreDamaged
from shared.store.sqlite.failures import is_damage
from shared.store.volume import chain, layout, snapshot
from shared.store.volume.carrier import Carrier
from shared.store.volume.layout import FileId
from shared.store.volume.sidecar import State

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
        """Fold the finished segments if they are many or long enough; returns whether it did."""
        state = self._carrier.sidecar.read()
        if state is None or state.segment == self._looked_at:
            return False
        due = is_due(Path(state.store_dir), state.segment, self._least_bytes)
        if due:
            try:
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

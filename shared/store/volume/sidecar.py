"""What every process on this machine knows about shipping: a small file beside the runtime database.

It lives and dies with the local disk. Whoever holds its lock may ship; what it says is written only after
the volume has it, so a process killed in between makes the next one ship the same bytes again.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from shared.store.sqlite.engine import take
from shared.store.volume import layout
from shared.store.volume.layout import FileId, Link, link, numbers, write_all
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


@dataclass(frozen=True, slots=True)
class State:
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

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock; raises TimeoutError when another process keeps it too long."""
        take(self._fd, LOCK_MS)
        try:
            yield
        finally:
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
        # Not asdict, which copies deeply: this is written with every turn.
        fields = {name: getattr(state, name) for name in State.__slots__}
        fields |= {"segment": list(state.segment), "previous": numbers(state.previous)}
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

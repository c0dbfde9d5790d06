"""A backup carries its own checksum: a CRC-32 of the file in a field that SQLite leaves to applications.

The field is ``application_id`` (sqlite.org/fileformat2.html, section 1.3.14); it counts as zero in the sum.
So the file stays an ordinary database, and the checksum goes where the file goes.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Final

from shared.errors import StoreDamaged
from shared.store.volume import snapshot, wal

MAGIC: Final = b"SQLite format 3\0"
FIELD: Final = slice(68, 72)


def seal(database: Path) -> None:
    """Write the checksum of a closed database into it."""
    with database.open("r+b") as file:
        file.seek(FIELD.start)
        file.write(_sum(database).to_bytes(4, "big"))


def must_be_whole(database: Path) -> bool:
    """Raise StoreDamaged when a file isn't what its checksum promises; returns False when it has none."""
    with database.open("rb") as file:
        head = file.read(FIELD.stop)
    promised = int.from_bytes(head[FIELD], "big") if head.startswith(MAGIC) else 0
    if promised and promised != _sum(database):
        raise StoreDamaged(f"{database} is damaged: its content has another checksum than it carries")
    return promised != 0


def copy(source: Path, target: Path) -> None:
    """Copy a database nobody has open, with its log, without touching it."""
    for path, to in ((source, target), (wal.log_path(source), wal.log_path(target))):
        if path.exists():
            snapshot.copy(path, to)


def _sum(database: Path) -> int:
    with database.open("rb") as file:
        first = zlib.crc32(file.read(FIELD.start) + bytes(4))
    return snapshot.checksum(database, skip=FIELD.stop, crc=first) or 1

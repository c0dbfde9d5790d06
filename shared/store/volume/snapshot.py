"""Whole copies of the database: snapshots, whose names have a checksum of content and place, and backups.

A backup carries its own checksum, a CRC-32 of the file, in ``application_id``, a field that SQLite leaves to
applications (sqlite.org/fileformat2.html, section 1.3.14); it counts as zero in the sum. So the file stays an
ordinary database, and the checksum goes where the file goes.
"""

import os
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from shared.errors import StoreDamaged
from shared.store.sqlite.content import told_apart
from shared.store.volume import layout, wal
from shared.store.volume.layout import FileId, Snapshot

CHUNK: Final = 1 << 20


def copy(source: Path, target: Path, *, skip: int = 0, length: int | None = None) -> int:
    """Copy a file (``length`` bytes after ``skip``) and return the CRC-32 of what was copied."""
    crc, done, parts = 0, 0, _parts(source, skip, length)
    fd = layout.open_file(target, os.O_WRONLY | os.O_TRUNC)
    try:
        for part in parts:
            layout.write_all(fd, part, done)
            crc, done = zlib.crc32(part, crc), done + len(part)
    finally:
        os.close(fd)
    return crc


def _parts(path: Path, skip: int, length: int | None = None) -> Iterator[bytes]:
    """Yield what is in a file behind ``skip`` bytes; an error in reading names the file."""
    left = sys.maxsize if length is None else length
    try:
        with path.open("rb") as file:
            file.seek(skip)
            while part := file.read(min(CHUNK, left)):
                left -= len(part)
                yield part
    except OSError as error:
        error.filename = error.filename or path
        raise


def named(crc: int, name: FileId) -> int:
    """Return the checksum for a snapshot's name: under another name the same content doesn't fit."""
    return zlib.crc32(str(name).encode(), crc)


def fits(snapshot: Snapshot, crc: int) -> bool:
    """Return whether content with this CRC-32 is what a snapshot's name promises.

    Earlier programs named a snapshot by the CRC-32 of its content alone.
    """
    return snapshot.crc in (crc, named(crc, snapshot.id))


def publish(source: Path, store_dir: Path, name: FileId, check: Callable[[], object] = bool) -> Path:
    """Put a copy of a closed database on the volume as a snapshot; it is there whole or not at all.

    ``check`` is called between the steps and may raise to give up. What was written is read back.
    """
    temporary = store_dir / f"snapshot-{name}{layout.TEMPORARY}"
    with told_apart("STORE_DIR", store_dir, lambda: source.stat().st_size):
        try:
            crc = copy(source, temporary)
            check()
            layout.sync(temporary)
            if checksum(temporary) != crc:
                raise OSError("the volume gave back other bytes than were written")
            check()
            path = layout.snapshot_path(store_dir, name, named(crc, name))
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        layout.sync(store_dir)
    return path


def checksum(path: Path, *, skip: int = 0, crc: int = 0) -> int:
    """Return the CRC-32 of a file, of what is behind ``skip`` bytes and goes on after ``crc``."""
    for part in _parts(path, skip):
        crc = zlib.crc32(part, crc)
    return crc


def intact(snapshot: Snapshot) -> bool:
    """Return whether a snapshot holds what its name promises; raises OSError when it can't be read."""
    return fits(snapshot, checksum(snapshot.path))


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


def copy_with_log(source: Path, target: Path) -> None:
    """Copy a database nobody has open, with its log, without touching it."""
    for path, to in ((source, target), (wal.log_path(source), wal.log_path(target))):
        if path.exists():
            copy(path, to)


def _sum(database: Path) -> int:
    with database.open("rb") as file:
        first = zlib.crc32(file.read(FIELD.start) + bytes(4))
    return checksum(database, skip=FIELD.stop, crc=first) or 1

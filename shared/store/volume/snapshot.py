"""Snapshots: whole copies of the database with a checksum of content and place in the name."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

from shared.store.sqlite.failures import told_apart
from shared.store.volume import layout
from shared.store.volume.layout import FileId, Snapshot

CHUNK: Final = 1 << 20


def copy(source: Path, target: Path, *, skip: int = 0, length: int | None = None) -> int:
    """Copy a file (``length`` bytes after ``skip``) and return the CRC-32 of what was copied."""
    with source.open("rb") as file:
        file.seek(skip)
        fd = layout.open_file(target, os.O_WRONLY | os.O_TRUNC)
        try:
            crc, done = 0, 0
            while part := file.read(CHUNK if length is None else min(CHUNK, length - done)):
                layout.write_all(fd, part, done)
                crc, done = zlib.crc32(part, crc), done + len(part)
        finally:
            os.close(fd)
    return crc


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
    with path.open("rb") as file:
        file.seek(skip)
        while part := file.read(CHUNK):
            crc = zlib.crc32(part, crc)
    return crc


def intact(snapshot: Snapshot) -> bool:
    """Return whether a snapshot holds what its name promises; raises OSError when it can't be read."""
    return fits(snapshot, checksum(snapshot.path))

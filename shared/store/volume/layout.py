"""The files of a volume: their names, their order, and how they are written so that they survive.

``snapshot-<era>-<number>.<crc32>.db`` is the database as it was before segment ``<era>-<number>``;
``wal-<era>-<number>`` is the copy of one epoch of the write-ahead log. Every host that takes the volume
begins a new era, so files that an overtaken host still writes sort before those of its successor.
"""

from __future__ import annotations

import os
import re
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from shared import jsons
from shared.errors import StoreError
from shared.store.sqlite.failures import told_apart

SNAPSHOT: Final = re.compile(r"snapshot-(\d{6})-(\d{8})\.([0-9a-f]{8})\.db")
SEGMENT: Final = re.compile(r"wal-(\d{6})-(\d{8})")
TEMPORARY: Final = ".tmp"


class FileId(NamedTuple):
    """Where a file stands in the volume's history."""

    era: int
    number: int

    def __str__(self) -> str:
        return f"{self.era:06d}-{self.number:08d}"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot file and the checksum its name promises."""

    id: FileId
    path: Path
    crc: int


@dataclass(frozen=True, slots=True)
class Listing:
    """What lies on a volume, each list oldest first."""

    snapshots: list[Snapshot]
    segments: list[FileId]

    @property
    def empty(self) -> bool:
        """Return whether no database was ever stored here."""
        return not self.snapshots and not self.segments

    def last_number(self) -> int:
        """Return the largest number in use, 0 if none is."""
        return max((name.number for name in self._ids()), default=0)

    def last_era(self) -> int:
        """Return the newest era, 0 if there is none."""
        return max((name.era for name in self._ids()), default=0)

    def _ids(self) -> list[FileId]:
        return [*self.segments, *(snapshot.id for snapshot in self.snapshots)]


def scan(store_dir: Path) -> Listing:
    """List the volume."""
    snapshots, segments = [], []
    for path in store_dir.iterdir():
        if found := SNAPSHOT.fullmatch(path.name):
            snapshots.append(Snapshot(_id(found), path, int(found[3], 16)))
        elif found := SEGMENT.fullmatch(path.name):
            segments.append(_id(found))
    return Listing(sorted(snapshots, key=lambda snapshot: snapshot.id), sorted(segments))


def segment_path(store_dir: Path, name: FileId) -> Path:
    """Return where a segment lies."""
    return store_dir / f"wal-{name}"


def snapshot_path(store_dir: Path, name: FileId, crc: int) -> Path:
    """Return where a snapshot with this content lies."""
    return store_dir / f"snapshot-{name}.{crc:08x}.db"


def open_file(path: Path, flags: int) -> int:
    """Open a file of the volume, made if need be, and return its descriptor.

    What root makes gets the directory's owner: an operator's command must not lock out the host.
    """
    fd = os.open(path, flags | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if os.geteuid() == 0:
        owner = path.parent.stat()
        with suppress(PermissionError):
            os.fchown(fd, owner.st_uid, owner.st_gid)
    return fd


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_durably(path: Path, data: bytes) -> None:
    """Put ``data`` at ``path`` as a whole or not at all, on the disk when this returns."""
    temporary = path.with_name(path.name + TEMPORARY)
    with told_apart("STORE_DIR", path.parent):
        fd = open_file(temporary, os.O_WRONLY | os.O_TRUNC)
        try:
            write_all(fd, data, 0)
            os.fsync(fd)
        finally:
            os.close(fd)
        temporary.replace(path)
        sync_directory(path.parent)


def write_all(fd: int, data: bytes, offset: int) -> None:
    """Write all of ``data`` at ``offset``."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


def seal(fields: dict[str, Any], size: int) -> bytes:
    """Return a record, a line of JSON with its checksum, as exactly ``size`` bytes; raises StoreError."""
    body = jsons.dump_bytes(fields)
    text = b"%08x %b" % (zlib.crc32(body), body)
    if len(text) >= size:
        raise StoreError("The path of STORE_DIR is too long")
    return text.ljust(size - 1) + b"\n"


def unseal(data: bytes) -> dict[str, Any] | None:
    """Return the fields, or None when the record is absent, torn or not one."""
    checksum, _, body = data.rstrip().partition(b" ")
    try:
        if int(checksum, 16) != zlib.crc32(body):
            return None
        fields = jsons.loads(body)
    except ValueError:
        return None
    return fields if isinstance(fields, dict) else None


def _id(found: re.Match[str]) -> FileId:
    return FileId(int(found[1]), int(found[2]))

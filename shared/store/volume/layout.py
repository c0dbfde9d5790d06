"""The files of a volume: names, order, what their records say, how they are written so that they survive.

``snapshot-<era>-<number>.<crc32>.db`` is the database as it was before segment ``<era>-<number>``;
``wal-<era>-<number>`` is the copy of one epoch of the write-ahead log. Every host that takes the volume
begins a new era, so files that an overtaken host still writes sort before those of its successor.

A segment is a record that says what it is and continues, then the log's bytes. Each append also writes into
that record how far the sync *before* it came, so whatever is cut or damaged up to there is seen, without any
further sync. What follows may be a tail that nobody was told of.
"""

import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from shared import jsons
from shared.errors import StoreDamaged, StoreError
from shared.store.sqlite.content import told_apart

SNAPSHOT: Final = re.compile(r"snapshot-(\d{6})-(\d{8})\.([0-9a-f]{8})\.db")
SEGMENT: Final = re.compile(r"wal-(\d{6})-(\d{8})")
TEMPORARY: Final = ".tmp"
HEAD: Final = 512
"""Bytes before the log's own bytes in a segment file: one sector, which no crash leaves half written."""
READ_AGAIN: Final = 3
"""A reader beside a writing host may catch the record half written."""
LOCK: Final = "host.lock"
LOCK_BYTES: Final = 1024


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


def sync(path: Path) -> None:
    """Make a file's content, or the names in a directory, durable."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def durably(path: Path) -> Iterator[Path]:
    """Give a name to write to; it is at ``path`` afterwards as a whole, on the disk, or not at all."""
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def write_durably(path: Path, data: bytes) -> None:
    """Put ``data`` at ``path`` as a whole or not at all, on the disk when this returns."""
    with told_apart("STORE_DIR", path.parent), durably(path) as temporary:
        fd = open_file(temporary, os.O_WRONLY | os.O_TRUNC)
        try:
            write_all(fd, data, 0)
        finally:
            os.close(fd)


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


@dataclass(frozen=True, slots=True)
class Link:
    """A point in the history: a segment, how many of its log bytes count, and the checksum at their end."""

    id: FileId
    length: int
    checksum: int


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment as found on the volume; ``length`` is in bytes of log, ``durable`` what must be there."""

    id: FileId
    path: Path
    previous: Link | None
    length: int
    durable: Link


def create_segment(store_dir: Path, name: FileId, previous: Link | None) -> None:
    """Start an empty segment, durably; one that was started and never filled is started anew."""
    write_durably(segment_path(store_dir, name), _head(previous, Link(name, 0, 0)))


def append_to_segment(store_dir: str, data: bytes, durable: Link, previous: Link | None) -> None:
    """Write log bytes behind those that are ``durable``, and wait for the disk.

    The file must exist; raises StoreDamaged if somebody has cut it.
    """
    path = f"{store_dir}/wal-{durable.id}"
    # Opened by name each time: a descriptor would keep writing to a volume that was taken away.
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        if os.fstat(fd).st_size < HEAD + durable.length:
            raise StoreDamaged(f"{path} was cut off while the host wrote it")
        write_all(fd, _head(previous, durable), 0)
        write_all(fd, data, HEAD + durable.length)
        os.fdatasync(fd)
    finally:
        os.close(fd)


def read_segment(store_dir: Path, name: FileId) -> Segment | None:
    """Return a segment, None when it is absent; raises StoreDamaged when its record isn't its own."""
    path = segment_path(store_dir, name)
    for _ in range(READ_AGAIN):
        try:
            with path.open("rb") as file:
                fields = unseal(file.read(HEAD))
                length = os.fstat(file.fileno()).st_size - HEAD
        except FileNotFoundError:
            return None
        if fields is not None and "previous" in fields:
            # Earlier programs wrote neither the name nor how far the sync before came.
            durable, found = fields.get("durable", [0, 0]), FileId(*fields.get("id", name))
            if found != name:
                raise StoreDamaged(f"{path} holds what belongs in wal-{found}")
            return Segment(name, path, link(fields["previous"]), length, Link(name, *durable))
    raise StoreDamaged(f"{path} is damaged at byte 0")


def link(fields: list[int] | None) -> Link | None:
    """Return a link from a record's four numbers."""
    return None if fields is None else Link(FileId(fields[0], fields[1]), fields[2], fields[3])


def numbers(link: Link | None) -> list[int] | None:
    """Return a link as four numbers for a record."""
    return None if link is None else [*link.id, link.length, link.checksum]


def _head(previous: Link | None, durable: Link) -> bytes:
    fields = {
        "id": [*durable.id],
        "previous": numbers(previous),
        "durable": [durable.length, durable.checksum],
    }
    return seal(fields, HEAD)


def has_frames(store_dir: Path, name: FileId) -> bool:
    """Return whether anything was ever shipped into a segment."""
    found = read_segment(store_dir, name)
    return found is not None and found.length > 0


def checksum_before(segment: Segment, length: int, frame_size: int) -> int | None:
    """Return the running checksum of the frame that ends at ``length``, None if it isn't there."""
    if length > segment.length:
        return None
    with segment.path.open("rb") as file:
        file.seek(HEAD + length - frame_size)
        return int.from_bytes(file.read(24)[16:24], "big")


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a volume. ``token`` is new with every taking; ``end``: how far the volume surely goes."""

    owner: str
    host: str
    pid: int
    boot: str
    token: str
    era: int
    beat: int = 0
    released: bool = False
    end: Link | None = None

    def __str__(self) -> str:
        return f"{self.owner} (process {self.pid} on {self.host})"


def holder(store_dir: Path) -> Holder | None:
    """Return who holds the volume, or held it last; None if nobody ever did."""
    try:
        data = (store_dir / LOCK).read_bytes()[:LOCK_BYTES]
    except FileNotFoundError:
        return None
    return holder_of(data)


def holder_of(data: bytes) -> Holder | None:
    """Return whom a lock file names, None if it is empty or torn."""
    fields = unseal(data)
    if fields is None or "token" not in fields:
        return None
    return Holder(**fields | {"end": link(fields.get("end"))})

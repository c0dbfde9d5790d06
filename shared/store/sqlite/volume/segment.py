"""A segment: a record that says what it continues, then the bytes of one epoch of the log."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shared.store.sqlite.volume import layout, records
from shared.store.sqlite.volume.layout import FileId

HEAD: Final = 512
"""Bytes before the log's own bytes in a segment file."""


@dataclass(frozen=True, slots=True)
class Link:
    """The segment before: which, how many of its log bytes count, and the checksum at their end."""

    id: FileId
    length: int
    checksum: int


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment as found on the volume; ``length`` is in bytes of log."""

    id: FileId
    path: Path
    previous: Link | None
    length: int


def create(store_dir: Path, name: FileId, previous: Link | None) -> None:
    """Start an empty segment, durably; one that was started and never filled is started anew."""
    link = None if previous is None else [*previous.id, previous.length, previous.checksum]
    path = layout.segment_path(store_dir, name)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        layout.write_all(fd, records.seal({"previous": link}, HEAD), 0)
        os.fsync(fd)
    finally:
        os.close(fd)
    layout.sync_directory(store_dir)


def append(path: Path, data: bytes, offset: int) -> None:
    """Write log bytes at ``offset`` and wait for the disk; the file must exist."""
    # Opened by name each time: a descriptor would keep writing to a volume that was taken away.
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        layout.write_all(fd, data, HEAD + offset)
        os.fdatasync(fd)
    finally:
        os.close(fd)


def read(store_dir: Path, name: FileId) -> Segment | None:
    """Return a segment, or None when it is absent or its record is torn."""
    path = layout.segment_path(store_dir, name)
    try:
        with path.open("rb") as file:
            fields = records.unseal(file.read(HEAD))
            length = os.fstat(file.fileno()).st_size - HEAD
    except FileNotFoundError:
        return None
    if fields is None:
        return None
    link = fields["previous"]
    previous = None if link is None else Link(FileId(link[0], link[1]), link[2], link[3])
    return Segment(name, path, previous, length)


def has_frames(store_dir: Path, name: FileId) -> bool:
    """Return whether anything was ever shipped into a segment."""
    found = read(store_dir, name)
    return found is not None and found.length > 0


def checksum_before(segment: Segment, length: int, frame_size: int) -> int | None:
    """Return the running checksum of the frame that ends at ``length``, None if it isn't there."""
    if length > segment.length:
        return None
    with segment.path.open("rb") as file:
        file.seek(HEAD + length - frame_size)
        return int.from_bytes(file.read(24)[16:24], "big")

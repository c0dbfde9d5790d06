"""A segment: a record that says what it is and continues, then the bytes of one epoch of the log.

Each append also writes into that record how far the sync *before* it came, so whatever is cut or damaged up
to there is seen, without any further sync. What follows may be a tail that nobody was told of.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shared.errors import StoreDamaged
from shared.store.volume import layout
from shared.store.volume.layout import FileId

HEAD: Final = 512
"""Bytes before the log's own bytes in a segment file: one sector, which no crash leaves half written."""
READ_AGAIN: Final = 3
"""A reader beside a writing host may catch the record half written."""


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


def create(store_dir: Path, name: FileId, previous: Link | None) -> None:
    """Start an empty segment, durably; one that was started and never filled is started anew."""
    layout.write_durably(layout.segment_path(store_dir, name), _head(previous, Link(name, 0, 0)))


def append(store_dir: Path, data: bytes, durable: Link, previous: Link | None) -> None:
    """Write log bytes behind those that are ``durable``, and wait for the disk; the file must exist."""
    path = layout.segment_path(store_dir, durable.id)
    # Opened by name each time: a descriptor would keep writing to a volume that was taken away.
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        layout.write_all(fd, _head(previous, durable), 0)
        layout.write_all(fd, data, HEAD + durable.length)
        os.fdatasync(fd)
    finally:
        os.close(fd)


def read(store_dir: Path, name: FileId) -> Segment | None:
    """Return a segment, None when it is absent; raises StoreDamaged when its record isn't its own."""
    path = layout.segment_path(store_dir, name)
    for _ in range(READ_AGAIN):
        try:
            with path.open("rb") as file:
                fields = layout.unseal(file.read(HEAD))
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
    return layout.seal(fields, HEAD)


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

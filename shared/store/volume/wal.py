"""Reading SQLite's write-ahead log as a file (format: sqlite.org/fileformat2.html, section 4).

The caller holds the gate, so no transaction is being written while a log is read here.
"""

import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

HEADER: Final = struct.Struct(">8I")
FRAME: Final = struct.Struct(">6I")

PAGE_SIZES: Final = frozenset(1 << power for power in range(9, 17))
PART: Final = 4 * 1024 * 1024
"""Bytes that are read at a time, and so the memory that shipping takes, unless one transaction is larger."""


class NotContinuous(Exception):
    """The log doesn't continue what was shipped: somebody began it anew."""


class LogReplaced(NotContinuous):
    """The log is gone, or another file has its name: what is open and what is on the disk are two things."""


@dataclass(frozen=True, slots=True)
class Mark:
    """How far one epoch of the log was shipped.

    ``shipped`` is a length in bytes. ``batch`` is where the last shipped transaction began and ``digest`` the
    CRC-32 of its frame headers: a writer killed between its commit frame and the shared index leaves
    frames that the next writer overwrites in place, and only a second look at them tells.
    """

    inode: int
    salts: int
    page_size: int
    shipped: int = 0
    batch: int = 0
    digest: int = 0
    checksum: int = 0


@dataclass(frozen=True, slots=True)
class Tail:
    """Committed bytes that were not shipped yet, and the mark that holds once they are."""

    data: bytes
    mark: Mark


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame of a log: at which byte, which page, its content; ``commits``: the database's pages, or 0."""

    offset: int
    page: int
    commits: int
    data: bytes
    sound: bool


def log_path(database: Path) -> Path:
    """Return where SQLite keeps the log of a database."""
    return database.with_name(database.name + "-wal")


def begin(log: Path) -> Mark:
    """Return the mark at the very start of the log's present epoch; raises NotContinuous without a log."""
    fd = _opened(log)
    try:
        return Mark(*_epoch(fd))
    finally:
        os.close(fd)


def read_tail(log: Path, mark: Mark) -> Tail | None:
    """Return the next part of what was committed after ``mark``, or None; raises NotContinuous."""
    fd = _opened(log)
    try:
        inode, salts, page_size = _epoch(fd)
        if inode != mark.inode:
            raise LogReplaced
        # Read at once, as it was when it was shipped: a read for each header takes three times as long.
        batch = _read(fd, max(mark.batch, HEADER.size), mark.shipped)
        if (salts, page_size) != (mark.salts, mark.page_size) or _digest(batch, page_size) != mark.digest:
            raise NotContinuous
        return _next_part(fd, mark)
    finally:
        os.close(fd)


def frames(log: BinaryIO, page_size: int | None = None) -> Iterator[Frame]:
    """Yield the frames of a segment's log, each with whether its checksum holds; a damaged header as page 0.

    A damaged frame doesn't hide those behind it: each is checked by what the one before says, or should say.
    It takes 20 ms for each mebibyte, so it is for damaged logs. ``page_size``: of the database, if known.
    """
    head = log.read(HEADER.size)
    if len(head) < HEADER.size:
        return
    magic, _, size, _, *salts, one, two = HEADER.unpack(head)
    order = ">" if magic & 1 else "<"
    before = {(one, two), _checksum(head[:24], order, (0, 0))}
    if len(before) > 1:
        yield Frame(0, 0, 0, b"", sound=False)
    whole = next(each for each in (page_size, size, 4096) if each in PAGE_SIZES)
    offset, length = HEADER.size, FRAME.size + whole
    while len(frame := log.read(length)) == length:
        page, commits, *own_salts, one, two = FRAME.unpack(frame[: FRAME.size])
        sums = {_checksum(frame[:8] + frame[FRAME.size :], order, each) for each in before}
        # No page has the number 0; the checksum of zeros alone would be theirs.
        sound = page > 0 and (one, two) in sums and (own_salts == salts or len(before) > 1)
        yield Frame(offset, page, commits, frame[FRAME.size :], sound)
        before = {(one, two)} if sound else {(one, two), *list(sums)[:2]}
        offset += length


def _checksum(data: bytes, order: str, before: tuple[int, int]) -> tuple[int, int]:
    one, two = before
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for even, odd in zip(words[::2], words[1::2], strict=True):
        one = (one + even + two) & 0xFFFFFFFF
        two = (two + odd + one) & 0xFFFFFFFF
    return one, two


def _opened(log: Path) -> int:
    try:
        return os.open(log, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise LogReplaced from error


def _epoch(fd: int) -> tuple[int, int, int]:
    """Return the log's inode, salts and page size."""
    head = os.pread(fd, HEADER.size, 0)
    if len(head) < HEADER.size:
        raise NotContinuous
    _, _, page_size, _, salt1, salt2, _, _ = HEADER.unpack(head)
    return os.fstat(fd).st_ino, salt1 << 32 | salt2, page_size


def _digest(frames: bytes, page_size: int) -> int:
    """Return the CRC-32 of the frames' headers."""
    starts = range(0, len(frames), FRAME.size + page_size)
    return zlib.crc32(b"".join([frames[start : start + FRAME.size] for start in starts]))


def _next_part(fd: int, mark: Mark) -> Tail | None:
    size = os.fstat(fd).st_size
    end = mark.shipped
    while end < size:
        # A part that holds no whole transaction grows until it does.
        end = min(end + PART, size)
        tail = _committed(_read(fd, mark.shipped, end), mark)
        if tail is not None:
            return tail
    return None


def _read(fd: int, start: int, end: int) -> bytes:
    parts = []
    while start < end and (part := os.pread(fd, end - start, start)):
        parts.append(part)
        start += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _committed(data: bytes, mark: Mark) -> Tail | None:
    begin = end = checksum = 0
    first, size = 0 if mark.shipped else HEADER.size, FRAME.size + mark.page_size
    whole = max(len(data) - first, 0) // size * size
    headers = struct.iter_unpack(f"{FRAME.format}{mark.page_size}x", memoryview(data)[first : first + whole])
    for offset, (_, commits, salt1, salt2, *sums) in zip(
        range(first, first + whole, size), headers, strict=True
    ):
        if salt1 << 32 | salt2 != mark.salts:
            break
        if commits:
            # The running checksum in a frame's header vouches for the whole log up to there.
            begin, end, checksum = end, offset + size, sums[0] << 32 | sums[1]
    if not end:
        return None
    digest = _digest(data[begin or first : end], mark.page_size)
    places = mark.shipped + end, mark.shipped + begin, digest, checksum
    return Tail(data[:end], Mark(mark.inode, mark.salts, mark.page_size, *places))

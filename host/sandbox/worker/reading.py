"""Reading files: text by lines, images, and the name of anything else."""

from __future__ import annotations

import base64
import contextlib
import os
from collections.abc import Iterator
from typing import Final

from .paths import Roots, is_device
from .plain_files import Answer, require_plain

READ_LINES: Final = 2000  # lines, unless asked otherwise
READ_BYTES: Final = 50_000  # bytes of text in one answer
SCAN_BYTES: Final = 64 << 20  # how far into a file an offset may reach
IMAGE_BYTES: Final = 3_750_000  # the model's limit of 5 MB, in base64
_SNIFF: Final = 8192
_DEVICE_BYTES: Final = 4096


def read_file(roots: Roots, arguments: Answer) -> Answer:
    """Text with a header line, an image as an image, anything else named as binary."""
    path = arguments["path"]
    if is_device(path):
        return {"text": _describe_bytes(path, _read_device(path))}
    with _regular(roots, path, os.O_RDONLY) as descriptor:
        size = os.fstat(descriptor).st_size
        start = os.pread(descriptor, _SNIFF, 0)
        media_type = _image_type(start)
        if media_type is not None:
            return _image(descriptor, path, size, media_type)
        if b"\0" in start:
            return {"text": f"[{path}: binary file, {size} bytes; not shown]"}
        first = max(1, arguments.get("offset") or 1)
        return {"text": _text(descriptor, path, size, first, arguments.get("limit") or READ_LINES)}


def read_text(roots: Roots, arguments: Answer) -> Answer:
    """Plain content for the host's own use: at most ``limit`` bytes."""
    with _regular(roots, arguments["path"], os.O_RDONLY) as descriptor:
        return {"text": os.pread(descriptor, arguments["limit"], 0).decode("utf-8", "replace")}


def _text(descriptor: int, path: str, size: int, first: int, limit: int) -> str:
    lines: list[bytes] = []
    taken = number = 0
    more = False
    for number, line in enumerate(_lines(descriptor), 1):
        if number < first:
            continue
        if len(lines) == limit or taken >= READ_BYTES:
            more = True
            break
        lines.append(line[: READ_BYTES - taken])
        cut = len(line) > READ_BYTES - taken
        taken += len(lines[-1])
        if cut:
            more = True
            break
    if not lines:
        return f"[{path}: {size} bytes, {number} lines; nothing at line {first}]"
    last = first + len(lines) - 1
    tail = f"; cut here, more follows (offset={last + 1})" if more else "; end of file"
    header = f"[{path}: {size} bytes, lines {first}-{last}{tail}]"
    return f"{header}\n{b''.join(lines).decode('utf-8', 'replace')}"


def _lines(descriptor: int) -> Iterator[bytes]:
    """Yield lines, reading at most ``SCAN_BYTES``; a line is cut where it is longer than an answer."""
    rest = b""
    read = 0
    while read < SCAN_BYTES:
        data = os.read(descriptor, 256 << 10)
        if not data:
            break
        read += len(data)
        *whole, rest = (rest + data).split(b"\n")
        yield from (line + b"\n" for line in whole)
        if len(rest) > READ_BYTES:
            yield rest
            rest = b""
    if rest:
        yield rest


def _image_type(start: bytes) -> str | None:
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if start.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if start[:6] in (b"GIF87a", b"GIF89a"):
        return "image/gif"
    return "image/webp" if start[:4] == b"RIFF" and start[8:12] == b"WEBP" else None


def _image(descriptor: int, path: str, size: int, media_type: str) -> Answer:
    if size > IMAGE_BYTES:
        return {"text": f"[{path}: {media_type}, {size} bytes; too large to be shown]"}
    data = os.pread(descriptor, IMAGE_BYTES, 0)
    text = f"[{path}: {media_type}, {size} bytes]"
    return {"text": text, "image": {"data": base64.b64encode(data).decode(), "media_type": media_type}}


def _read_device(path: str) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return os.read(descriptor, _DEVICE_BYTES)
    finally:
        os.close(descriptor)


def _describe_bytes(path: str, data: bytes) -> str:
    return f"[{path}: device; read {len(data)} bytes]"


@contextlib.contextmanager
def _regular(roots: Roots, path: str, flags: int) -> Iterator[int]:
    """Open a regular file of one name; never waits on a FIFO, never touches a device twice."""
    descriptor = roots.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        require_plain(path, os.fstat(descriptor), hard_links=roots.hard_links(path))
        yield descriptor
    finally:
        os.close(descriptor)

"""Reading files: text by pages, images, and the name of anything else."""

from __future__ import annotations

import base64
import contextlib
import os
from collections.abc import Iterator
from functools import partial
from typing import Final

from ..names import quoted
from .formats import SNIFF, WHOLE_BYTES, Answer, binary_name, encoding, require_plain
from .paging import page, read_at
from .paths import Roots, is_device

IMAGE_BYTES: Final = 3_750_000  # the model's limit of 5 MB, in base64
_DEVICE_BYTES: Final = 4096


def read_file(roots: Roots, arguments: Answer) -> Answer:
    """Text with a header line, an image as an image, anything else by what it is."""
    path = arguments["path"]
    if is_device(path):
        return {"text": f"[{path}: device; read {len(_read_device(path))} bytes]"}
    with regular(roots, path) as descriptor:
        size = os.fstat(descriptor).st_size
        called = f"{quoted(path)}: {size} bytes"
        start = os.pread(descriptor, SNIFF, 0)
        media_type = _image_type(start)
        if media_type is not None:
            return _image(descriptor, path, size, media_type)
        binary = binary_name(start)
        if binary is not None:
            return {"text": f"[{quoted(path)}: {binary}, {size} bytes; not shown]"}
        name = encoding(start)
        if name == "utf-8":
            return {"text": page(called, partial(read_at, descriptor), arguments)}
        if size > WHOLE_BYTES:
            return {"text": f"[{called} of {name.upper()}; too large to be decoded, convert it with iconv]"}
        made = read_at(descriptor, 0, WHOLE_BYTES).decode(name, "replace").removeprefix("\ufeff").encode()
        called = f"{called} of {name.upper()}, shown as {len(made)} bytes of UTF-8"
        return {"text": page(called, lambda place, count: made[place : place + count], arguments)}


def read_text(roots: Roots, arguments: Answer) -> Answer:
    """Plain content for the host's own use: at most ``limit`` bytes."""
    with regular(roots, arguments["path"]) as descriptor:
        return {"text": os.pread(descriptor, arguments["limit"], 0).decode("utf-8", "replace")}


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
        return {"text": f"[{quoted(path)}: {media_type}, {size} bytes; too large to be shown]"}
    data = os.pread(descriptor, IMAGE_BYTES, 0)
    text = f"[{quoted(path)}: {media_type}, {size} bytes]"
    return {"text": text, "image": {"data": base64.b64encode(data).decode(), "media_type": media_type}}


def _read_device(path: str) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return os.read(descriptor, _DEVICE_BYTES)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def regular(roots: Roots, path: str) -> Iterator[int]:
    """Hold a regular file of one name open; never waits on a FIFO, never touches a device twice."""
    descriptor = roots.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        require_plain(path, os.fstat(descriptor), hard_links=roots.hard_links(path))
        yield descriptor
    finally:
        os.close(descriptor)

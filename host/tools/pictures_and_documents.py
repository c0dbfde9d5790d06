"""What files hold that are no text: whether the Messages API takes a picture, and what a PDF says.

Of a picture only the structure is read, nothing decoded: PNG (W3C, 3rd edition), JPEG (ITU T.81), GIF89a,
WebP (RFC 9649).
Limits: https://platform.claude.com/docs/en/build-with-claude/vision
A PDF is read where nothing can be reached (``host.sandbox.view``).
"""

import base64
import binascii
import os
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Any, Final

from host.ports import Image, Sandbox, SandboxFault, ToolResult

LARGEST: Final = 5 * 1024 * 1024
"""Characters of a picture's base64."""

LONGEST_SIDE: Final = 8000
"""Pixels."""

MOST_PARTS: Final = 20_000
"""Chunks or segments of a file; each costs time."""

_PNG: Final = b"\x89PNG\r\n\x1a\n"
_MARKER: Final = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")
_SIZES: Final = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
"""JPEG's start-of-frame markers."""


class Unfit(Exception):
    """The picture can't be sent; the text says why, as in "it is cut off"."""


@dataclass(frozen=True, slots=True)
class Picture:
    """What the header says; sides in pixels."""

    media_type: str
    width: int
    height: int


def is_picture(data: bytes) -> bool:
    """Return whether a file begins as a picture that could be sent."""
    return _reader(data) is not None


def picture_of(data: bytes) -> Picture:
    """Return what a file is, if it is a whole picture that may be sent; raises Unfit."""
    if len(data) * 4 / 3 > LARGEST:
        raise Unfit(f"it has {len(data):,} bytes, and {LARGEST * 3 // 4:,} are the most")
    reader = _reader(data)
    if reader is None:
        raise Unfit("it is no PNG, JPEG, GIF or WebP")
    try:
        picture = reader(data)
    except IndexError:
        raise Unfit("it is cut off") from None
    if not (picture.width and picture.height):
        raise Unfit("it has no pixels")
    if max(picture.width, picture.height) > LONGEST_SIDE:
        size = f"{picture.width} x {picture.height} pixels"
        raise Unfit(f"it has {size}, and {LONGEST_SIDE} are the most for a side; make it smaller")
    return picture


def fit(result: ToolResult) -> ToolResult:
    """Return the result with the pictures that may be sent, and a line for each that may not."""
    kept: list[Image] = []
    lines = [result.text] if result.text else []
    for image in result.images:
        try:
            kept.append(_fit(image, result))
        except Unfit as fault:
            lines.append(f"[a picture was left out: {fault}]")
    return replace(result, text="\n".join(lines), images=tuple(kept))


def _fit(image: Image, result: ToolResult) -> Image:
    if result.is_error:
        raise Unfit("the model's API takes only text with an error")
    if len(image.data) > 2 * LARGEST:
        raise Unfit(f"it has {len(image.data):,} characters, and {LARGEST:,} are the most")
    try:
        data = base64.b64decode("".join(image.data.split()), validate=True)
    except (binascii.Error, ValueError):
        raise Unfit("its data is not base64") from None
    return Image(base64.b64encode(data).decode(), picture_of(data).media_type)


def _reader(data: bytes) -> Callable[[bytes], Picture] | None:
    if data.startswith(_PNG):
        return _png
    if data.startswith(b"\xff\xd8\xff"):
        return _jpeg
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return _gif
    return _webp if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else None


def _counted() -> Iterator[None]:
    yield from repeat(None, MOST_PARTS)
    raise Unfit("it has too many parts")


def _part(data: bytes, start: int, length: int) -> bytes:
    part = data[start : start + length]
    if len(part) < length:
        raise IndexError
    return part


def _number(data: bytes, start: int, length: int, *, little: bool = False) -> int:
    return int.from_bytes(_part(data, start, length), "little" if little else "big")


def _png(data: bytes) -> Picture:
    at, kinds = len(_PNG), set()
    for _ in _counted():
        length = _number(data, at, 4)
        body = _part(data, at + 4, length + 4)
        if zlib.crc32(body) != _number(data, at + 8 + length, 4):
            raise Unfit("it is damaged")
        kinds.add(body[:4])
        at += length + 12
        if body[:4] == b"IEND":
            break
    if data[12:16] != b"IHDR" or b"IDAT" not in kinds:
        raise Unfit("it is damaged")
    return Picture("image/png", _number(data, 16, 4), _number(data, 20, 4))


def _jpeg(data: bytes) -> Picture:
    found: Picture | None = None
    at = 2
    for _ in _counted():
        marker = _MARKER.search(data, at)
        if marker is None:
            raise IndexError
        kind, at = marker[1][0], marker.end()
        if kind == 0xD9:
            break
        if kind in _SIZES and found is None:
            found = Picture("image/jpeg", _number(data, at + 5, 2), _number(data, at + 3, 2))
        at += _number(data, at, 2)
    if found is None:
        raise Unfit("it is damaged")
    return found


def _gif(data: bytes) -> Picture:
    at = 13 + _colours(data[10])
    frames = 0
    while (kind := data[at]) != 0x3B:
        if kind == 0x2C:
            frames += 1
            at += 11 + _colours(data[at + 9])
        elif kind == 0x21:
            at += 2
        else:
            raise Unfit("it is damaged")
        while length := data[at]:
            at += length + 1
        at += 1
    if not frames:
        raise Unfit("it is damaged")
    return Picture("image/gif", _number(data, 6, 2, little=True), _number(data, 8, 2, little=True))


def _colours(flags: int) -> int:
    """Return the bytes of a colour table."""
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _webp(data: bytes) -> Picture:
    end = 8 + _number(data, 4, 4, little=True)
    _part(data, 0, end)
    found: dict[bytes, int] = {}
    at = 12
    for _ in _counted():
        if at + 8 > end:
            break
        kind, length = data[at : at + 4], _number(data, at + 4, 4, little=True)
        if at + 8 + length > end:
            raise IndexError
        found.setdefault(kind, at + 8)
        at += 8 + length + length % 2
    if not {b"VP8 ", b"VP8L", b"ANMF"} & found.keys() or not {b"VP8X", b"VP8 ", b"VP8L"} & found.keys():
        raise Unfit("it is damaged")
    return Picture("image/webp", *_webp_sides(data, found))


def _webp_sides(data: bytes, found: Mapping[bytes, int]) -> tuple[int, int]:
    if at := found.get(b"VP8X"):
        return _number(data, at + 4, 3, little=True) + 1, _number(data, at + 7, 3, little=True) + 1
    if at := found.get(b"VP8 "):
        return _number(data, at + 6, 2, little=True) & 0x3FFF, _number(data, at + 8, 2, little=True) & 0x3FFF
    bits = _number(data, found[b"VP8L"] + 1, 4, little=True)
    return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1


PAGES: Final = r"^[1-9][0-9]{0,5}(-([1-9][0-9]{0,5})?)?$"
MOST_CHARACTERS: Final = 50_000
"""Of the text of all pages of one answer, unless the first has more."""
LAST: Final = 10**6
_RANGE: Final = re.compile(PAGES)


async def pdf_text(
    sandbox: Sandbox, descriptor: int, called: str, pages: str = "1-", most: int = MOST_CHARACTERS
) -> str:
    """Return the text of pages (``3``, ``2-5``, ``4-``) of an open PDF, which is closed, under a header that
    says how to get the rest. Raises ``SandboxFault``.
    """
    try:
        first, last = span_of(pages)
        found = await sandbox.view(descriptor, "text", first=first, last=last, most=most)
    finally:
        os.close(descriptor)
    return told(found, called, first)


def told(found: Mapping[str, Any], called: str, first: int = 1) -> str:
    """Return what ``view`` has found of a PDF's text from page ``first`` on, in words."""
    if "fault" in found:
        return f"[{called}; its text can't be shown: {found['fault']}]"
    shown, count = [str(page).strip() for page in found["pages"]], found["count"]
    if not shown:
        return f"[{called}, {count} pages; nothing at page {first}]"
    end = first + len(shown) - 1
    tail = "end of file" if end >= count else f'more follow (pages="{end + 1}-")'
    bodies = (f"[page {first + at}]\n{text or '(no text)'}" for at, text in enumerate(shown))
    return "\n".join([f"[{called}, {count} pages; pages {first}-{end}; {tail}]", *bodies])


def span_of(pages: str) -> tuple[int, int]:
    """Return the first and the last of the pages that are asked for. Raises ``SandboxFault``."""
    if not _RANGE.fullmatch(pages):
        raise SandboxFault("pages must be a number or a range, such as 3, 2-5 or 4-")
    first, dash, last = pages.partition("-")
    return int(first), int(last or (LAST if dash else first))

"""Showing a text page by page: what a header names as the next part begins where the page ends."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

from ..names import Refused
from .formats import Answer

READ_LINES: Final = 2000  # lines, unless asked otherwise
READ_BYTES: Final = 50_000  # bytes of text in one answer
SCAN_BYTES: Final = 64 << 20  # how far into a file lines are counted
_CHUNK: Final = 256 << 10
_FARTHEST: Final = 1 << 62


Read = Callable[[int, int], bytes]
"""Returns bytes by their place and number; fewer only at the end."""


def read_at(descriptor: int, place: int, count: int) -> bytes:
    """``Read`` of a file."""
    data = os.pread(descriptor, count, place)
    while len(data) < count and (more := os.pread(descriptor, count - len(data), place + len(data))):
        data += more
    return data


def page(called: str, read: Read, arguments: Answer) -> str:
    """Return lines from ``offset`` on under a header that says how to get the rest.

    Lines end in LF alone, as for grep. A page holds whole lines; one that is longer than a page is cut
    between characters. ``from_byte``, counted from 1, is where to begin within the line ``offset``; headers
    name it where counting lines would not lead there. Raises ``Refused``.
    """
    number, start = arguments.get("offset") or 1, arguments.get("from_byte")
    if start is None:
        place, reached = _line_start(read, number)
        if reached < number and place >= SCAN_BYTES:
            return f"[{called}; line {number} begins further on; try offset={reached}, from_byte={place + 1}]"
    elif "offset" in arguments:
        place, reached = min(start - 1, _FARTHEST), number
    else:
        raise Refused("from_byte needs offset, the number of the line that it lies in")
    data = read(place, READ_BYTES + 1) if reached == number else b""
    shown = data[: _page_end(data, arguments.get("limit") or READ_LINES)]
    origin = "" if start is None else f" from byte {place + 1}"
    if not shown:
        end, lines = _line_start(read, _FARTHEST)
        lines -= read(max(0, end - 1), 1) in (b"", b"\n")
        return f"[{called}, {lines} lines; nothing at line {number}{origin}]"
    whole = shown.endswith(b"\n")
    last = number + shown.count(b"\n") - whole
    tail = "end of file"
    if len(data) > len(shown):
        goes_on = f"offset={last + whole}"
        if not whole or start is not None or place + len(shown) > SCAN_BYTES:
            goes_on += f", from_byte={place + len(shown) + 1}"
        tail = f"cut {'here' if whole else f'within line {last}'}, more follows ({goes_on})"
    return f"[{called}, lines {number}-{last}{origin}; {tail}]\n{shown.decode('utf-8', 'replace')}"


def _line_start(read: Read, wanted: int) -> tuple[int, int]:
    """Return where a line begins and its number; where the end or the limit came first, the line there."""
    place, number = 0, 1
    while number < wanted and place < SCAN_BYTES and (data := read(place, _CHUNK)):
        ends = data.count(b"\n")
        if number + ends >= wanted:
            rest = data.split(b"\n", wanted - number)[-1]
            return place + len(data) - len(rest), wanted
        number, place = number + ends, place + len(data)
    return place, number


def _page_end(data: bytes, limit: int) -> int:
    lines = data[:READ_BYTES].split(b"\n", min(limit, READ_BYTES))
    if len(lines) > limit:
        return min(len(data), READ_BYTES) - len(lines[-1])
    if len(data) <= READ_BYTES:
        return len(data)
    return data.rfind(b"\n", 0, READ_BYTES) + 1 or _between_characters(data, READ_BYTES)


def _between_characters(data: bytes, place: int) -> int:
    """Return the place, or the one before the character that it would cut; none has over four bytes."""
    return next((at for at in range(place, place - 4, -1) if data[at] & 0xC0 != 0x80), place)

"""What a request says of a file: its path, which bytes of it, and what must hold there."""

from __future__ import annotations

import mimetypes
import re
from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import quote, unquote_to_bytes

from starlette.requests import Request

from shared.errors import InvalidInput, RangeUnsatisfiable

LONGEST_PATH: Final = 4096
LONGEST_NAME: Final = 255
MOST_LEVELS: Final = 32
OCTETS: Final = "application/octet-stream"
_SHOWN: Final = re.compile(r"html|xml|script")
"""Media types that a browser could run instead of saving."""
_TAG: Final = re.compile(r'\s*(?:W/)?(?:"([^"]*)"|(\*))\s*(?:,|$)')
_RANGE: Final = re.compile(r"bytes=[ \t]*([0-9]*)-([0-9]*)[ \t]*")


def path_of(request: Request) -> str:
    """Return the path of a file that a request's address names; raises InvalidInput.

    It is decoded once and taken as it is, so what the client wrote between slashes is one name.
    """
    raw: bytes = request.scope.get("raw_path") or request.scope["path"].encode()
    _, _, conversation, _, *names = raw.partition(b"?")[0].split(b"/")
    if unquote_to_bytes(conversation) != str(request.path_params["id"]).encode():
        raise InvalidInput("path: a name can't contain %2F")
    return checked_path([unquote_to_bytes(name) for name in names])


def checked_path(names: Sequence[bytes]) -> str:
    """Return names as one path in a workspace; raises InvalidInput."""
    shown = b"/".join(names)[:LONGEST_PATH].decode(errors="replace")
    for name in names:
        if not name:
            raise InvalidInput(f"path: {shown!r} has an empty name, or begins or ends with /")
        if name in (b".", b".."):
            raise InvalidInput(f"path: {shown!r} must not contain . or ..")
        if b"/" in name or b"\0" in name:
            raise InvalidInput(f"path: {shown!r}: a name can't contain / or NUL")
        if len(name) > LONGEST_NAME:
            raise InvalidInput(f"path: a name has at most {LONGEST_NAME} bytes")
    whole = b"/".join(names)
    if len(names) > MOST_LEVELS or len(whole) > LONGEST_PATH:
        raise InvalidInput(f"path: has at most {LONGEST_PATH} bytes and {MOST_LEVELS} names")
    try:
        return whole.decode()
    except UnicodeDecodeError:
        raise InvalidInput("path: must be UTF-8") from None


def conditions(request: Request) -> dict[str, Any]:
    """Return what must hold of a file before it is changed, as ``transfer`` takes it."""
    found = {"match": tags(request, "if-match"), "unless": tags(request, "if-none-match")}
    return {name: value for name, value in found.items() if value is not None}


def tags(request: Request, header: str) -> list[str] | None:
    """Return the ETags in a header, None without it; raises InvalidInput."""
    said = request.headers.get(header)
    if said is None:
        return None
    found, at = [], 0
    while at < len(said):
        tag = _TAG.match(said, at)
        if tag is None:
            raise InvalidInput(f'{header}: must be *, or ETags in quotation marks ("...")')
        found.append(tag[1] if tag[2] is None else "*")
        at = tag.end()
    return found


def span_of(request: Request, tag: str, size: int) -> tuple[int, int] | None:
    """Return the first byte that is asked for and the one behind the last; None: the whole file.

    Several ranges, and what is no range of bytes, are answered with the whole (RFC 9110, 14.2). Raises
    RangeUnsatisfiable.
    """
    said, only_of = request.headers.get("range"), request.headers.get("if-range")
    asked = None if said is None else _RANGE.fullmatch(said)
    if asked is None or asked[1] == asked[2] == "" or only_of not in (None, f'"{tag}"'):
        return None
    if not asked[1]:
        first, last = max(size - int(asked[2][:20]), 0), size
    else:
        first, last = int(asked[1][:20]), min(int(asked[2][:20]) + 1 if asked[2] else size, size)
    if asked[1] and asked[2] and int(asked[2][:20]) < first:
        return None
    if first >= size or (not asked[1] and first == size):
        raise RangeUnsatisfiable(f"Range: the file has {size} bytes", size=size)
    return first, last


def describing(path: str) -> dict[str, str]:
    """Return the headers that have a browser save a file and never show it."""
    name = path.rpartition("/")[2]
    kind, packed = mimetypes.guess_type(name, strict=False)
    if kind is None or packed or _SHOWN.search(kind):
        kind = OCTETS
    plain = re.sub(r'[^ -~]|["\\%]', "_", name)
    return {
        "content-type": kind,
        "content-disposition": f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}",
        "accept-ranges": "bytes",
        "x-content-type-options": "nosniff",
        "cache-control": "private, no-cache",
    }

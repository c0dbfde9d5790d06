"""Pictures and files among the parts of a message of a chat program."""

from __future__ import annotations

import base64
import hashlib
import mimetypes
import re
from collections.abc import Sequence
from typing import Any, Final

import anyio

from host.runs.attachments import LARGEST_OF_ALL, NewFile, decoded, media_type_of
from host.tools.pictures import is_picture
from shared import jsons
from shared.errors import PicoError

_DATA: Final = re.compile(r"data:([\w.+-]{1,60}/[\w.+-]{1,60})?(?:;[^,;]{0,100})*;base64,", re.ASCII)


KINDS: Final = {b"\x89": "image/png", b"\xff": "image/jpeg", b"G": "image/gif", b"R": "image/webp"}
"""What begins as a picture, by its first byte."""
WITHIN_S: Final = 10.0
"""For all pictures of a message that are fetched."""
ONLY: Final = "only text, pictures and files in base64 are taken here"


def line_of(part: dict[str, Any], why: str) -> str:
    """Return the line that stands for a part, alike whenever it is sent again."""
    digest = hashlib.sha256(jsons.dump_bytes(part)).hexdigest()[:12]
    return f"[{part['type'][:40]} {digest} left out: {why}]"


async def fetched(
    parts: Sequence[dict[str, Any]], hosts: Sequence[str], turns: anyio.Semaphore
) -> Sequence[dict[str, Any]]:
    """Return a message's parts with pictures in place of their addresses, or lines for what doesn't come."""
    if not hosts or all(_address(part) is None for part in parts):
        return parts
    async with turns:
        return await _fetched(parts, hosts)


async def _fetched(parts: Sequence[dict[str, Any]], hosts: Sequence[str]) -> list[dict[str, Any]]:
    # It brings a client along, of which a start has no use.
    from host.egress.pictures import fetch

    allowed, room = frozenset(host.lower() for host in hosts), LARGEST_OF_ALL
    until, told = anyio.current_time() + WITHIN_S, list[dict[str, Any]]()
    for part in parts:
        if (url := _address(part)) is None:
            told.append(part)
            continue
        data, why = b"", f"it did not come within {WITHIN_S:g} s"
        with anyio.CancelScope(deadline=until):
            try:
                data, why = await fetch(url, allowed, room), "its address leads to no picture"
            except PicoError as error:
                why = error.message.removeprefix("url: ")
        room -= len(data)
        told.append(_shown(data) if is_picture(data) else {"type": "text", "text": line_of(part, why)})
    return told


def _address(part: dict[str, Any]) -> str | None:
    """Return where a part's picture is to be fetched."""
    url = _said(part)[1] if part["type"] == "image_url" else None
    return url if isinstance(url, str) and url[:8].lower().startswith(("https://", "http://")) else None


def _shown(data: bytes) -> dict[str, Any]:
    url = f"data:{KINDS[data[:1]]};base64,{base64.b64encode(data).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def taken(parts: Sequence[dict[str, Any]]) -> tuple[str, list[NewFile]]:
    """Return a message's text, with a line for each part that can't be taken, and its files."""
    lines, files = list[str](), list[NewFile]()
    for part in parts:
        kind = part["type"]
        if kind in ("text", "refusal"):
            lines.append(part[kind])
            continue
        try:
            files.append(_file(part, LARGEST_OF_ALL - sum(len(file.data) for file in files)))
        except ValueError as error:
            lines.append(line_of(part, str(error)))
    return "\n".join(lines), files


def _file(part: dict[str, Any], room: int) -> NewFile:
    """Return the file of a part. Raises ValueError for one that can't be taken."""
    name, data = _said(part)
    if not isinstance(data, str):
        raise ValueError(ONLY)
    head = _DATA.match(data)
    if head is None and (part["type"] != "file" or ":" in data[:20]):
        raise ValueError("only data: addresses are taken here")
    media_type = head[1] if head is not None and head[1] else media_type_of(name)
    try:
        content = decoded(data[head.end() :] if head is not None else data)
    except ValueError:
        raise ValueError("its data is not base64") from None
    if len(content) > room:
        raise ValueError(f"files have more than {LARGEST_OF_ALL >> 20} MiB in all")
    return NewFile(name or f"picture{mimetypes.guess_extension(media_type) or ''}", media_type, content)


def _said(part: dict[str, Any]) -> tuple[str, Any]:
    """Return the name and the data that a part says."""
    inner = part.get(part["type"])
    if part["type"] == "image_url":
        return "", inner.get("url") if isinstance(inner, dict) else inner
    if part["type"] != "file" or not isinstance(inner, dict):
        return "", None
    name = inner.get("filename")
    return name[:200] if isinstance(name, str) and name.strip() else "file", inner.get("file_data")

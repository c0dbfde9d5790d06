"""Pictures and files among the parts of a message of a chat program."""

from __future__ import annotations

import hashlib
import mimetypes
import re
from collections.abc import Sequence
from typing import Any, Final

from host.runs.attachments import LARGEST_OF_ALL, NewFile, decoded, media_type_of
from shared import jsons

_DATA: Final = re.compile(r"data:([\w.+-]{1,60}/[\w.+-]{1,60})?(?:;[^,;]{0,100})*;base64,", re.ASCII)


ONLY: Final = "only text, pictures and files in base64 are taken here"


def line_of(part: dict[str, Any], why: str) -> str:
    """Return the line that stands for a part, alike whenever it is sent again."""
    digest = hashlib.sha256(jsons.dump_bytes(part)).hexdigest()[:12]
    return f"[{part['type'][:40]} {digest} left out: {why}]"


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

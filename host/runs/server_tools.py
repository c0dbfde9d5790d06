"""What people see of tools that the model's API ran itself, whose calls and results stand in the reply."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from shared.models import Block

USE: Final = "server_tool_use"
_RESULT: Final = "_tool_result"
_SHOWN_RESULTS: Final = 5


def server_events(blocks: Sequence[Block]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the events ``tool_use`` and ``tool_result`` of a reply's blocks, in their order."""
    for block in blocks:
        kind = str(block["type"])
        if kind == USE:
            yield "tool_use", {"tool": block["name"], "input": block.get("input") or {}}
        elif kind.endswith(_RESULT):
            content = block.get("content")
            preview = _preview(content)
            data = {"tool": kind.removesuffix(_RESULT), "is_error": _is_error(content), "preview": preview}
            yield "tool_result", data


def _is_error(content: Any) -> bool:
    return isinstance(content, Mapping) and "error_code" in content


def _preview(content: Any) -> str:
    """Return the found pages' titles and addresses, a fetched page's address, or the error's code."""
    if isinstance(content, Mapping):
        return str(content.get("error_code") or content.get("url") or content.get("type") or "")
    found = [item for item in content or () if isinstance(item, Mapping)]
    lines = [f"{item.get('title', '')} — {item.get('url', '')}" for item in found[:_SHOWN_RESULTS]]
    more = len(found) - len(lines)
    return "\n".join([*lines, *([f"and {more} more"] if more else [])])

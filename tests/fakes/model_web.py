"""Blocks of the API's own web tools, in the shapes of its reference.

A step's ``"server_tools"`` is a list of ``{"name": "web_search", "input": {...}}`` with ``"results"`` (a list
of ``{"url", "title"}``), ``"page"`` (what web_fetch found) or ``"error"`` (a code). With ``"pending":
true`` the result is left to a later step, which gives ``"answers": "srvtoolu_…"`` instead of an input.
Source: https://platform.claude.com/docs/en/agents-and-tools/tool-use/web-search-tool, .../web-fetch-tool
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any, Final
from uuid import uuid4

from shared.values import Block

DIRECT: Final = {"type": "direct"}


def server_blocks(step: dict[str, Any]) -> Iterator[Block]:
    """Yield the calls of a step and their results."""
    for tool in step.get("server_tools", ()):
        identity = tool.get("answers") or tool.get("id") or f"srvtoolu_{uuid4().hex[:24]}"
        if "answers" not in tool:
            yield {
                "type": "server_tool_use",
                "id": identity,
                "name": tool["name"],
                "input": tool.get("input", {}),
                "caller": DIRECT,
            }
        if not tool.get("pending"):
            kind = f"{tool['name']}_tool_result"
            yield {"type": kind, "tool_use_id": identity, "content": _content(tool, kind), "caller": DIRECT}


def _content(tool: dict[str, Any], kind: str) -> Any:
    if "error" in tool:
        return {"type": f"{kind}_error", "error_code": tool["error"]}
    if "page" in tool:
        source = {"type": "text", "media_type": "text/plain", "data": tool["page"]}
        document = {"type": "document", "source": source, "title": "A page", "citations": None}
        url = tool.get("input", {}).get("url", "https://example.com")
        return {"type": "web_fetch_result", "url": url, "content": document, "retrieved_at": None}
    return [
        {
            "type": "web_search_result",
            "url": found["url"],
            "title": found["title"],
            "encrypted_content": base64.b64encode(f"sealed {found['url']}".encode()).decode(),
            "page_age": found.get("age"),
        }
        for found in tool.get("results", ())
    ]


def citation(found: dict[str, str], words: str) -> dict[str, str]:
    """Return a citation of a found page, as text blocks carry it."""
    return {
        "type": "web_search_result_location",
        "url": found["url"],
        "title": found["title"],
        "encrypted_index": base64.b64encode(b"index").decode(),
        "cited_text": words,
    }

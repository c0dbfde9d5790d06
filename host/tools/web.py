"""Searching and reading the web: tools that the model's API runs itself, switched on by the settings.

Their results come inside the model's reply, written by strangers; the system prompt says so. They are stored
and sent back as they came, ``encrypted_content`` included, or the API refuses the conversation.
Source: https://platform.claude.com/docs/en/agents-and-tools/tool-use/server-tools
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from host.ports import ToolResult, ToolSpec
from shared.settings.tools import WebTools

SEARCH: Final = "web_search"
FETCH: Final = "web_fetch"
TYPES: Final = {SEARCH: "web_search_20260318", FETCH: "web_fetch_20260318"}
LARGEST_PAGE: Final = 20_000
"""Tokens of one fetched page."""


class WebToolset:
    """Implements ``host.ports.Toolset``: offers what is switched on, and runs nothing."""

    def __init__(self, settings: WebTools) -> None:
        self.specs = [
            ToolSpec(name, "", {}, read_only=True, definition=_definition(name, settings))
            for name, wanted in ((SEARCH, settings.search), (FETCH, settings.fetch))
            if wanted
        ]

    async def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        """Refuse: such a call never leaves the API, unless a server speaks another protocol."""
        return ToolResult(f"{name} is run by the model's API, which did not run it.", is_error=True)


def _definition(name: str, settings: WebTools) -> Mapping[str, Any]:
    found: dict[str, Any] = {
        "type": TYPES[name],
        "name": name,
        "max_uses": settings.max_uses,
        # Called by the model, not from code that the API would run for it.
        "allowed_callers": ["direct"],
    }
    if settings.allowed_domains:
        found["allowed_domains"] = list(settings.allowed_domains)
    if settings.blocked_domains:
        found["blocked_domains"] = list(settings.blocked_domains)
    if name == FETCH:
        found["max_content_tokens"] = LARGEST_PAGE
    return found

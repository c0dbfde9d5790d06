"""How many tokens a request will cost before the API has counted them: an estimate on the high side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from shared.jsons import dump_bytes

BYTES_PER_TOKEN: Final = 3
"""English has about four bytes a token, code and JSON about three."""

IMAGE_TOKENS: Final = 1600
"""The most an image counts after the API has scaled it (https://platform.claude.com/docs, vision)."""


def estimated_input(request: Mapping[str, Any]) -> int:
    """Return the tokens of a request's system prompt, tools and messages."""
    return estimated_prefix(request) + estimated(request.get("messages"))


def estimated_prefix(request: Mapping[str, Any]) -> int:
    """Return the tokens of a request's system prompt and tools alone.

    They are counted as the JSON that is sent: walking through twenty schemas takes ten times as long.
    """
    prefix = [request[part] for part in ("system", "tools") if request.get(part)]
    return -(-len(dump_bytes(prefix)) // BYTES_PER_TOKEN) if prefix else 0


def estimated_text(characters: int) -> int:
    """Return the tokens of that many characters of a reply."""
    return -(-characters // BYTES_PER_TOKEN)


def estimated(value: Any) -> int:
    """Return the tokens of a part of a request: a message, a block, a text."""
    if isinstance(value, str):
        return -(-len(value.encode()) // BYTES_PER_TOKEN)
    if isinstance(value, Mapping):
        if value.get("type") == "image":
            return IMAGE_TOKENS
        return sum(estimated(key) + estimated(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return sum(estimated(item) for item in value)
    return 0 if value is None else 1

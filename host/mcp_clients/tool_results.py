"""What a server answers to a call, or for a resource, as the model may see it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

import mcp_types as types

from host.mcp_clients.json_rpc import cut
from host.ports import Image, ToolResult
from shared import jsons

LONGEST_FIELD: Final = 1024
"""Characters of one thing that is said of a resource."""
MOST_LEAVES: Final = 1000
"""Values that are looked for in a text; more say more."""
_WORD: Final = re.compile(r"[\w.+-]+")


def tool_result(result: types.CallToolResult) -> ToolResult:
    """Return text up to the limit, images unlooked at, and structured content that says more."""
    texts = [text for block in result.content if (text := _text(block)) is not None]
    text = "\n".join(texts)
    shown, structured = cut(text), result.structured_content
    if structured is not None and shown == text and jsons.fits(structured) and _says_more(structured, text):
        shown = cut("\n".join([*texts, jsons.dumps(structured)]))
    images = tuple(
        Image(block.data, block.mime_type)
        for block in result.content
        if isinstance(block, types.ImageContent)
    )
    return ToolResult(shown, is_error=result.is_error, images=images)


def contents(result: types.ReadResourceResult) -> ToolResult:
    """Return a resource's text up to the limit, and its images."""
    texts, images = [], []
    for part in result.contents:
        if isinstance(part, types.TextResourceContents):
            texts.append(part.text)
        elif (part.mime_type or "").startswith("image/"):
            images.append(Image(part.blob, part.mime_type or ""))
        else:
            texts.append(_binary(part))
    return ToolResult(cut("\n".join(texts)), images=tuple(images))


def _text(block: types.ContentBlock) -> str | None:
    match block:
        case types.TextContent():
            return block.text
        case types.ImageContent():
            return None
        case types.AudioContent():
            return f"[audio of type {block.mime_type[:64]} that can't be played]"
        case types.ResourceLink():
            return _link(block)
        case types.EmbeddedResource(resource=types.TextResourceContents() as resource):
            return resource.text
        case types.EmbeddedResource():
            return _binary(block.resource)


def _link(block: types.ResourceLink) -> str:
    size = None if block.size is None else f"{block.size} bytes"
    said = [block.uri, block.name, block.title, block.description, block.mime_type, size]
    return f"[resource {'; '.join(str(part)[:LONGEST_FIELD] for part in said if part)}]"


def _binary(resource: Any) -> str:
    kind = resource.mime_type or "unknown type"
    return f"[binary resource {resource.uri[:LONGEST_FIELD]} of {kind[:64]}]"


def _says_more(structured: Any, text: str) -> bool:
    """Return whether there is a value in it that the text does not have as a word, or as words."""
    words = frozenset(_WORD.findall(text))
    for number, leaf in enumerate(_leaves(structured)):
        said = leaf in words or (
            _WORD.fullmatch(leaf) is None and (leaf in text or jsons.dumps(leaf)[1:-1] in text)
        )
        if number >= MOST_LEAVES or not said:
            return True
    return not text


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _leaves(inner)
    elif value is not None:
        yield value if isinstance(value, str) else jsons.dumps(value)

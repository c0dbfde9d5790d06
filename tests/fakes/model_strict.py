"""What the Messages API refuses, by its documentation: the fake server refuses it too, in every test.

Sources: https://platform.claude.com/docs/en/api/messages (blocks, roles, tools),
.../agents-and-tools/tool-use/handle-tool-calls (pairs, their order), .../build-with-claude/vision (pictures),
.../build-with-claude/extended-thinking (signatures, budgets), .../build-with-claude/prompt-caching,
.../api/overview (sizes).
"""

from __future__ import annotations

import base64
import binascii
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, Final

from shared.values import Block
from tests.fakes.model_thinking import UNBOUND
from tests.fakes.protocol import InvalidRequest

LARGEST_REQUEST: Final = 32 * 1024 * 1024
MOST_PICTURES: Final = 100
MANY_PICTURES: Final = 20
LONGEST_SIDE, LONGEST_SIDE_OF_MANY = 8000, 2000
LARGEST_PICTURE: Final = 5 * 1024 * 1024
MOST_BREAKPOINTS: Final = 4
LEAST_THINKING: Final = 1024

_FIELDS: Final = {
    "model", "max_tokens", "messages", "system", "tools", "tool_choice", "stream", "thinking", "temperature",
    "top_p", "top_k", "stop_sequences", "metadata", "cache_control", "service_tier",
}  # fmt: skip
_ID: Final = re.compile(r"[a-zA-Z0-9_-]+")
_NAME: Final = re.compile(r"[a-zA-Z0-9_-]{1,128}")
_OF_ASSISTANTS: Final = {"thinking", "redacted_thinking", "tool_use", "server_tool_use"}
_OF_USERS: Final = {"image", "document", "tool_result", "search_result"}
_BLOCK_FIELDS: Final = {
    "text": {"text", "citations"},
    "image": {"source"},
    "document": {"source", "title", "context", "citations"},
    "search_result": {"source", "title", "content", "citations"},
    "thinking": {"thinking", "signature"},
    "redacted_thinking": {"data"},
    "tool_use": {"id", "name", "input", "caller"},
    "server_tool_use": {"id", "name", "input", "caller"},
    "tool_result": {"tool_use_id", "content", "is_error"},
}
_IN_RESULTS: Final = {"text", "image", "document", "search_result"}
_PICTURES: Final = {
    "image/png": b"\x89PNG\r\n\x1a\n",
    "image/jpeg": b"\xff\xd8\xff",
    "image/gif": b"GIF8",
    "image/webp": b"RIFF",
}


def refuse(request: dict[str, Any], size: int) -> None:
    """Raise InvalidRequest for a request that the API would refuse; ``size`` in bytes."""
    _require(size <= LARGEST_REQUEST, "Request exceeds the maximum size")
    unknown = request.keys() - _FIELDS
    _require(not unknown, f"{', '.join(sorted(unknown))}: Extra inputs are not permitted")
    _check_thinking(request)
    _check_tools(request.get("tools") or [])
    _check_breakpoints(request)
    for at, block in enumerate(_listed(request.get("system") or [])):
        _check_block(block, f"system.{at}", {"text"})
    _check_messages(request)


def _require(holds: bool, sentence: str) -> None:
    if not holds:
        raise InvalidRequest(sentence)


def _listed(content: Any) -> list[Any]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _check_thinking(request: dict[str, Any]) -> None:
    thinking = request.get("thinking") or {"type": "disabled"}
    _require(
        thinking["type"] in ("enabled", "adaptive", "disabled"), "thinking.type: Input should be 'enabled'"
    )
    if thinking["type"] == "enabled":
        budget = thinking.get("budget_tokens", 0)
        _require(budget >= LEAST_THINKING, "thinking.enabled.budget_tokens: Input should be at least 1024")
        _require(request["max_tokens"] > budget, "`max_tokens` must be greater than `thinking.budget_tokens`")


def _check_tools(tools: Sequence[dict[str, Any]]) -> None:
    for at, tool in enumerate(tools):
        _require(bool(_NAME.fullmatch(tool["name"])), f"tools.{at}.custom.name: String should match pattern")
        if "input_schema" in tool:
            kind = tool["input_schema"].get("type")
            _require(kind == "object", f"tools.{at}.custom.input_schema.type: Field required")


def _check_breakpoints(request: dict[str, Any]) -> None:
    marked = [one["cache_control"] for one in _every_block(request) if one.get("cache_control")]
    _require(len(marked) <= MOST_BREAKPOINTS, "A maximum of 4 blocks with cache_control may be provided")
    _require(
        all(one.get("type") == "ephemeral" for one in marked),
        "cache_control.type: Input should be 'ephemeral'",
    )


def _every_block(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield from request.get("tools") or []
    yield from _listed(request.get("system") or [])
    for message in request["messages"]:
        for block in _listed(message["content"]):
            yield block
            yield from _nested(block)


def _nested(block: Block) -> list[Block]:
    content = block.get("content") if block["type"] == "tool_result" else []
    return content if isinstance(content, list) else []


def _check_messages(request: dict[str, Any]) -> None:
    messages = request["messages"]
    _require(messages[0]["role"] == "user", 'messages: first message must use the "user" role')
    seen: set[str] = set()
    for at, message in enumerate(messages):
        blocks = _listed(message["content"])
        _require(message["role"] in ("user", "assistant"), f"messages.{at}.role: Input should be 'user'")
        last = at == len(messages) - 1 and message["role"] == "assistant"
        _require(bool(blocks) or last, f"messages.{at}: all messages must have non-empty content")
        allowed = _OF_USERS if message["role"] == "user" else _OF_ASSISTANTS
        for number, block in enumerate(blocks):
            _check_block(block, f"messages.{at}.content.{number}", {"text", *allowed}, message["role"])
        _check_ids(blocks, seen, at)
        _check_order(blocks, message["role"], at)
    _check_first_thinking(request)
    _check_pictures(request)


def _check_ids(blocks: Sequence[Block], seen: set[str], at: int) -> None:
    for block in blocks:
        if block["type"] == "tool_use":
            _require(block["id"] not in seen, f"messages.{at}: `tool_use` ids must be unique")
            seen.add(block["id"])
    answered = [block["tool_use_id"] for block in blocks if block["type"] == "tool_result"]
    _require(len(answered) == len(set(answered)), f"messages.{at}: each tool_use must have a single result")


def _check_order(blocks: Sequence[Block], role: str, at: int) -> None:
    results = [block["type"] == "tool_result" for block in blocks]
    _require(results == sorted(results, reverse=True), f"messages.{at}: `tool_result` blocks must come first")
    if role == "assistant" and blocks:
        is_thinking = "thinking" in blocks[-1]["type"]
        _require(
            not is_thinking, f"messages.{at}: The final block in an assistant message cannot be `thinking`."
        )


def _check_first_thinking(request: dict[str, Any]) -> None:
    """With a budget, the assistant's turn that goes on after its calls has to begin with its thinking."""
    messages = request["messages"]
    if (request.get("thinking") or {}).get("type") != "enabled" or len(messages) < 2:
        return
    goes_on = any(block["type"] == "tool_result" for block in _listed(messages[-1]["content"]))
    first = _listed(messages[-2]["content"])[:1]
    if goes_on and first:
        sentence = f"messages.{len(messages) - 2}.content.0.type: Expected `thinking` or `redacted_thinking`"
        _require("thinking" in first[0]["type"], f"{sentence}, but found `{first[0]['type']}`")


def _check_block(block: Block, place: str, allowed: set[str], role: str = "user") -> None:
    kind = block["type"]
    of_server = kind.endswith("_tool_result") and role == "assistant"
    _require(kind in allowed or of_server, f"{place}: Input tag '{kind}' found using 'type' does not match")
    if not of_server:
        extra = block.keys() - _BLOCK_FIELDS[kind] - {"type", "cache_control"}
        _require(not extra, f"{place}.{kind}.{', '.join(sorted(extra))}: Extra inputs are not permitted")
    match kind:
        case "text":
            _require(
                bool(block["text"].strip()), f"{place}: text content blocks must contain non-whitespace text"
            )
        case "thinking" | "redacted_thinking":
            _require(
                "cache_control" not in block, f"{place}.{kind}.cache_control: Extra inputs are not permitted"
            )
            _check_signature(block, place)
        case "tool_use":
            _require(bool(_ID.fullmatch(block["id"])), f"{place}.tool_use.id: String should match pattern")
            _require(
                bool(_NAME.fullmatch(block["name"])), f"{place}.tool_use.name: String should match pattern"
            )
            _require(
                isinstance(block["input"], dict),
                f"{place}.tool_use.input: Input should be a valid dictionary",
            )
        case "tool_result":
            _check_result(block, place)


def _check_signature(block: Block, place: str) -> None:
    if block["type"] == "thinking":
        signature = block["signature"]
        # Those bound to their place are checked in model_thinking.
        ours = signature == UNBOUND or re.fullmatch("[0-9a-f]{32}", signature)
        _require(bool(ours), f"{place}: Invalid `signature` in `thinking` block")


def _check_result(block: Block, place: str) -> None:
    parts = _nested(block)
    for number, part in enumerate(parts):
        _check_block(part, f"{place}.tool_result.content.{number}", _IN_RESULTS)
    text_alone = all(part["type"] == "text" for part in parts)
    _require(
        text_alone or not block.get("is_error"),
        f"{place}: all content must be type `text` if `is_error` is true",
    )


def _check_pictures(request: dict[str, Any]) -> None:
    sources = [block["source"] for block in _every_block(request) if block.get("type") == "image"]
    _require(len(sources) <= MOST_PICTURES, "messages: too many images")
    most = LONGEST_SIDE if len(sources) <= MANY_PICTURES else LONGEST_SIDE_OF_MANY
    for source in sources:
        _require(len(source["data"]) <= LARGEST_PICTURE, "image exceeds 5 MB maximum")
        _require(
            max(_sides(source)) <= most,
            f"At least one of the image dimensions exceed max allowed size: {most}",
        )


def _sides(source: dict[str, Any]) -> Sequence[int]:
    """Return the sides of a PNG that can be decoded; other formats are only looked at."""
    try:
        data = base64.b64decode(source["data"], validate=True)
        _require(
            data.startswith(_PICTURES[source["media_type"]]), "Image does not match the provided media type"
        )
        if source["media_type"] != "image/png":
            return (1, 1)
        width, height = struct.unpack(">II", data[16:24])
        start = data.index(b"IDAT")
        length = struct.unpack(">I", data[start - 4 : start])[0]
        zlib.decompressobj().decompress(data[start + 4 : start + 4 + length], 1)
        _require(data[-8:-4] == b"IEND" and length > 0, "Could not process image")
    except (KeyError, ValueError, struct.error, zlib.error, binascii.Error):
        raise InvalidRequest("Could not process image") from None
    return (width, height)

"""The Messages protocol as a server speaks it: validation, token estimates, JSON bodies, server-sent events.

Shapes follow https://platform.claude.com/docs/en/api/messages and .../build-with-claude/streaming.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from shared.jsons import dump_bytes
from shared.usage_values import Usage
from shared.values import Block

_ROLES: Final = frozenset({"user", "assistant", "system"})
CHARS_PER_TOKEN: Final = 4
_DELTA_CHARS: Final = 48


class InvalidRequest(Exception):
    """The request breaks the protocol; the text is the sentence of the 400 answer."""


@dataclass(frozen=True, slots=True)
class Message:
    """One reply of a model, ready to be sent as a whole or as a stream.

    ``text_deltas`` gives the pieces that text is streamed in; by default they are cut by length.
    """

    id: str
    model: str
    blocks: Sequence[Block]
    stop_reason: str
    usage: Usage
    text_deltas: Sequence[str] | None = field(default=None)

    def body(self) -> dict[str, Any]:
        """Return the answer to a request without ``stream``."""
        return {**self._head(self.blocks), "stop_reason": self.stop_reason, "usage": asdict(self.usage)}

    def events(self) -> Iterator[dict[str, Any]]:
        """Return the events of a stream in their order."""
        started = Usage(
            self.usage.input_tokens,
            1,
            self.usage.cache_creation_input_tokens,
            self.usage.cache_read_input_tokens,
        )
        yield {
            "type": "message_start",
            "message": {**self._head([]), "stop_reason": None, "usage": asdict(started)},
        }
        for index, block in enumerate(self.blocks):
            yield from self._block_events(index, block)
        yield {
            "type": "message_delta",
            "delta": {"stop_reason": self.stop_reason, "stop_sequence": None},
            "usage": {"output_tokens": self.usage.output_tokens},
        }
        yield {"type": "message_stop"}

    def _head(self, content: Sequence[Block]) -> dict[str, Any]:
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": list(content),
            "stop_sequence": None,
        }

    def _block_events(self, index: int, block: Block) -> Iterator[dict[str, Any]]:
        start, deltas = _opening(block), self._deltas(block)
        yield {"type": "content_block_start", "index": index, "content_block": start}
        for delta in deltas:
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}

    def _deltas(self, block: Block) -> list[dict[str, Any]]:
        match block["type"]:
            case "text":
                pieces = pieces_of(block["text"]) if self.text_deltas is None else self.text_deltas
                cited = [{"type": "citations_delta", "citation": one} for one in block.get("citations", ())]
                return [*({"type": "text_delta", "text": piece} for piece in pieces), *cited]
            case "thinking":
                thoughts = [
                    {"type": "thinking_delta", "thinking": piece} for piece in pieces_of(block["thinking"])
                ]
                return [*thoughts, {"type": "signature_delta", "signature": block["signature"]}]
            case "tool_use" | "server_tool_use":
                text = dump_bytes(block["input"]).decode()
                return [
                    {"type": "input_json_delta", "partial_json": piece} for piece in ["", *pieces_of(text)]
                ]
        return []


def _opening(block: Block) -> Block:
    match block["type"]:
        case "text":
            return {"type": "text", "text": ""}
        case "thinking":
            return {"type": "thinking", "thinking": "", "signature": ""}
        case "tool_use" | "server_tool_use":
            return {**block, "input": {}}
    return block


def pieces_of(text: str, size: int = _DELTA_CHARS) -> list[str]:
    """Cut text into the pieces of a stream; joined they are the text."""
    return [text[at : at + size] for at in range(0, len(text), size)]


def sse(event: Mapping[str, Any]) -> bytes:
    """Return one server-sent event as it goes over the wire."""
    return b"event: %b\ndata: %b\n\n" % (str(event["type"]).encode(), dump_bytes(event))


def error_body(kind: str, message: str, request_id: str) -> dict[str, Any]:
    """Return the API's error object, such as ``invalid_request_error``."""
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": request_id}


def tokens(value: object) -> int:
    """Estimate the tokens of a text or of any JSON value: a quarter of its bytes, at least one."""
    size = len(value.encode()) if isinstance(value, str) else len(dump_bytes(value))
    return max(1, -(-size // CHARS_PER_TOKEN))


def input_tokens(request: Mapping[str, Any]) -> int:
    """Estimate what a request costs: its tools, its system prompt and its messages."""
    return sum(tokens(request[key]) for key in ("tools", "system", "messages") if request.get(key))


def checked(request: object, *, counting: bool = False) -> dict[str, Any]:
    """Return the request if it follows the protocol as far as a reply depends on it.

    ``counting`` is for ``count_tokens``, which has no ``max_tokens``. Raises ``InvalidRequest``.
    """
    if not isinstance(request, dict):
        raise InvalidRequest("The request body is not a JSON object")
    if not isinstance(request.get("model"), str) or not request["model"]:
        raise InvalidRequest("model: Field required")
    limit = request.get("max_tokens")
    if not counting and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
        raise InvalidRequest("max_tokens: Input should be a whole number of at least 1")
    _check_messages(request.get("messages"))
    _check_tools(request.get("tools"))
    return request


def _check_messages(messages: object) -> None:
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest("messages: at least one message is required")
    offered: set[str] = set()
    running: set[str] = set()
    for at, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in _ROLES:
            raise InvalidRequest(f"messages.{at}.role: Input should be 'user' or 'assistant'")
        blocks = _checked_blocks(message.get("content"), at)
        _check_results(blocks, offered, at)
        running = _still_running(message["role"], blocks, running, at)
        offered = {block["id"] for block in blocks if block["type"] == "tool_use" and "id" in block}


def _checked_blocks(content: object, at: int) -> list[Block]:
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise InvalidRequest(f"messages.{at}.content: Input should be a text or a list of content blocks")
    for block in content:
        if not isinstance(block, dict) or not isinstance(block.get("type"), str):
            raise InvalidRequest(f"messages.{at}.content: every block needs a type")
        if block["type"] == "text" and not str(block.get("text") or "").strip():
            raise InvalidRequest(f"messages.{at}: text content blocks must be non-empty")
    return content


def _check_results(blocks: Sequence[Block], offered: set[str], at: int) -> None:
    answered = {str(block.get("tool_use_id")) for block in blocks if block["type"] == "tool_result"}
    if answered - offered:
        raise InvalidRequest(f"messages.{at}: a `tool_result` has no `tool_use` in the message before it")
    if offered - answered:
        raise InvalidRequest(f"messages.{at}: a `tool_use` was not followed by its `tool_result`")


def _still_running(role: str, blocks: Sequence[Block], running: set[str], at: int) -> set[str]:
    """Return the server's own calls that have no result yet; only the assistant's turn may end so."""
    if role == "user" and running:
        raise InvalidRequest(f"messages.{at}: a `server_tool_use` has no result before it")
    for block in blocks:
        if block["type"] == "server_tool_use":
            running = {*running, str(block.get("id"))}
        elif block["type"] != "tool_result" and block["type"].endswith("_tool_result"):
            _check_server_result(block, running, at)
            running = running - {str(block["tool_use_id"])}
    return running


def _check_server_result(block: Block, running: set[str], at: int) -> None:
    if block.get("tool_use_id") not in running:
        raise InvalidRequest(f"messages.{at}: a `{block['type']}` has no `server_tool_use` before it")
    found = block.get("content")
    for item in found if isinstance(found, list) else ():
        if item.get("type") == "web_search_result" and not item.get("encrypted_content"):
            raise InvalidRequest(f"messages.{at}: web_search_result.encrypted_content: Field required")


def _check_tools(tools: object) -> None:
    if tools is None:
        return
    if not isinstance(tools, list) or not all(
        isinstance(t, dict) and isinstance(t.get("name"), str) for t in tools
    ):
        raise InvalidRequest("tools: every tool needs a name")
    names = [tool["name"] for tool in tools]
    if len(set(names)) != len(names):
        raise InvalidRequest("tools: Tool names must be unique.")

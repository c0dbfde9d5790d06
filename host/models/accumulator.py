"""From the events of a Messages stream to a reply.

Source: https://platform.claude.com/docs/en/build-with-claude/streaming. Events, deltas and blocks of unknown
types are to be expected; they are skipped, or kept as they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from host.ports import Delta, ModelError, Reply, TextDelta, ThinkingDelta, ToolUseStart
from shared.jsons import JSONDecodeError, dumps, fits, loads
from shared.usage_values import Usage

if TYPE_CHECKING:
    from shared.values import Block

LONGEST: Final = 16 * 1024 * 1024
"""Characters of a reply; the longest that the API writes has about a twentieth."""
_MALFORMED_CHARS: Final = 2_000
_HALF: Final = re.compile("[\ud800-\udfff]")
_NOT_A_NAME: Final = re.compile(r"[^A-Za-z0-9_-]")
_LONGEST_NAME: Final = 128
_MOST_TOKENS: Final = 2**53
_LOST: Final = "\ufffd"
_KIND_OF_DELTA: Final = {
    "text_delta": "text",
    "thinking_delta": "thinking",
    "signature_delta": "thinking",
    "input_json_delta": "tool_use",
}
_COUNTS: Final = ("input_tokens", "output_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")


@dataclass(slots=True)
class _OpenBlock:
    """A block in the making; ``pieces`` are its text, its thinking or its input's JSON.

    ``half``: the first half of a character whose second comes with the next piece (UTF-16, cut by others).
    """

    start: Block
    index: Any = None
    pieces: list[str] = field(default_factory=list)
    signature: list[str] = field(default_factory=list)
    citations: list[Any] = field(default_factory=list)
    blank: bool = True
    half: str = ""


_BROKEN: Final = (KeyError, TypeError, AttributeError, RecursionError)


def _broken() -> ModelError:
    return ModelError("The model's answer broke the Messages protocol.", retryable=True)


class Accumulator:
    """Takes events in their order; gives a delta for each that people may see, and the reply at the end."""

    def __init__(self) -> None:
        self._blocks: list[_OpenBlock] = []
        self._begun = False
        self._counts: dict[str, int] = {}
        self._model = ""
        self._stop_reason: str | None = None
        self._stopped = False
        self._size = 0

    def feed(self, event: Any) -> Delta | None:
        """Take one event. Raises ``ModelError`` if it has not the shape that its type promises."""
        if not self._begun:
            self._begun = isinstance(event, dict) and isinstance(event.get("type"), str)
            if not self._begun:
                raise ModelError("What the server streams is no answer of the Messages API.", retryable=False)
        try:
            return self._take(event)
        except _BROKEN:
            raise _broken() from None

    def reply(self) -> Reply:
        """Return the reply. Raises ``ModelError`` (retryable) if the stream ended before its end.

        Either of the stop reason and the last event will do: some servers leave one of them out.
        """
        if not self._stopped and self._stop_reason is None:
            raise ModelError("The model's answer ended before it was complete.", retryable=True)
        try:
            return self._whole(self._stop_reason)
        except _BROKEN:
            raise _broken() from None

    def _whole(self, stop_reason: str | None) -> Reply:
        malformed: dict[str, str] = {}
        blocks = [_finished(one, malformed) for one in self._blocks]
        usage = Usage(*(self._counts.get(name, 0) for name in _COUNTS))
        kept = [block for block in blocks if block["type"] != "text" or block["text"].strip()]
        if stop_reason is None:
            stop_reason = "tool_use" if any(block["type"] == "tool_use" for block in kept) else "end_turn"
        return Reply(kept, stop_reason, usage, self._model, malformed)

    def _take(self, event: Any) -> Delta | None:
        match event["type"]:
            case "content_block_delta":
                delta = event["delta"]
                return self._grow(self._target(event.get("index"), delta["type"]), delta)
            case "content_block_start":
                return self._begin(event.get("index"), event["content_block"])
            case "content_block_stop" if (block := self._latest(event.get("index"))) is not None:
                return _stop(block)
            case "message_start":
                message = event.get("message") or {}
                self._model = _mended(str(message.get("model") or self._model))
                self._count(message.get("usage"))
            case "message_delta":
                reason = (event.get("delta") or {}).get("stop_reason")
                if reason and isinstance(reason, str):
                    self._stop_reason = _mended(reason)
                self._count(event.get("usage"))
            case "message_stop":
                self._stopped = True
        return None

    def _latest(self, index: Any, kind: str = "") -> _OpenBlock | None:
        """Return the block that an event is about: the latest of its index, any if it has none."""
        for block in reversed(self._blocks):
            if index in (None, block.index) and block.start["type"].endswith(kind):
                return block
        return None

    def _target(self, index: Any, delta: str) -> _OpenBlock:
        """Return the block that grows. Some servers begin two with one index, or none before its text."""
        kind = _KIND_OF_DELTA.get(delta, "")
        block = self._latest(index, kind)
        if block is None and delta in ("text_delta", "thinking_delta"):
            self._begin(index, {"type": kind, kind: ""})
            block = self._blocks[-1]
        if block is None:
            raise KeyError(index)
        return block

    def _begin(self, index: Any, block: Block) -> Delta | None:
        if not fits(block):
            block = _mended_value(block)
        if block["type"] == "tool_use":
            block = self._acceptable(block)
        opened = _OpenBlock(block, index)
        self._blocks.append(opened)
        match block["type"]:
            case "text" if block.get("text"):
                return _text(opened, block["text"])
            case "thinking" if block.get("thinking"):
                return _thinking(opened, block["thinking"])
            case "tool_use":
                return ToolUseStart(block["id"], block["name"])
        return None

    def _acceptable(self, block: Block) -> Block:
        """Return a call that the API takes back; it refuses other letters in a name or an id, for good."""
        name = _NOT_A_NAME.sub("_", block["name"])[:_LONGEST_NAME] or "_"
        given = block.get("id")
        call_id = f"toolu_{uuid4().hex[:24]}" if given is None else _NOT_A_NAME.sub("_", given) or "_"
        while any(call_id == one.start.get("id") for one in self._blocks):
            call_id += "_"
        return {**block, "id": call_id, "name": name}

    def _grow(self, block: _OpenBlock, delta: Mapping[str, Any]) -> Delta | None:
        match delta["type"]:
            case "text_delta":
                return _text(block, self._counted(delta["text"] or ""))
            case "thinking_delta":
                return _thinking(block, self._counted(delta["thinking"] or ""))
            case "input_json_delta":
                block.pieces.append(self._counted(_json_text(delta["partial_json"])))
            case "signature_delta":
                block.signature.append(delta["signature"] or "")
            case "citations_delta":
                block.citations.append(delta["citation"])
        return None

    def _counted(self, piece: str) -> str:
        self._size += len(piece)
        if self._size > LONGEST:
            raise ModelError(f"The model's answer is longer than {LONGEST} characters.", retryable=False)
        return piece

    def _count(self, usage: Mapping[str, Any] | None) -> None:
        # Counts are cumulative: a later one replaces an earlier one, a missing one leaves it.
        for name in _COUNTS:
            value = (usage or {}).get(name)
            if isinstance(value, int) and 0 <= value < _MOST_TOKENS:
                self._counts[name] = value


def events_of(message: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Return a whole message as the events of its stream."""
    yield {"type": "message_start", "message": message}
    for index, block in enumerate(message["content"]):
        yield {"type": "content_block_start", "index": index, "content_block": block}
        yield {"type": "content_block_stop", "index": index}
    yield {"type": "message_delta", "delta": message}
    yield {"type": "message_stop"}


def _stop(block: _OpenBlock) -> Delta | None:
    if not block.half:
        return None
    block.half = ""
    return _text(block, _LOST) if block.start["type"] == "text" else _thinking(block, _LOST)


def _piece(block: _OpenBlock, text: str) -> str:
    """Return what of a text is whole so far."""
    text = block.half + text
    block.half = text[-1:] if "\ud800" <= text[-1:] <= "\udbff" else ""
    return _mended(text[: len(text) - len(block.half)])


def _mended(text: str) -> str:
    """Return the text with the halves of characters joined, and those alone replaced."""
    if text.isascii() or _HALF.search(text) is None:
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _mended_value(value: Any) -> Any:
    if isinstance(value, str):
        return _mended(value)
    if isinstance(value, list):
        return [_mended_value(item) for item in value]
    if isinstance(value, dict):
        return {_mended_value(name): _mended_value(item) for name, item in value.items()}
    return value


def _text(block: _OpenBlock, text: str) -> TextDelta | None:
    text = _piece(block, text)
    block.pieces.append(text)
    if not block.blank:
        return TextDelta(text) if text else None
    # A blank block is dropped at the end, so nobody may have seen it: hold its space until a word follows.
    if not text.strip():
        return None
    block.blank = False
    return TextDelta("".join(block.pieces))


def _thinking(block: _OpenBlock, text: str) -> ThinkingDelta | None:
    text = _piece(block, text)
    block.pieces.append(text)
    return ThinkingDelta(text) if text else None


def _finished(block: _OpenBlock, malformed: dict[str, str]) -> Block:
    done = {name: value for name, value in block.start.items() if value is not None}
    _stop(block)
    match done["type"]:
        case "text":
            done["text"] = "".join(block.pieces)
            if block.citations:
                done["citations"] = block.citations
        case "thinking":
            done["thinking"] = "".join(block.pieces)
            done["signature"] = "".join(block.signature) or done.get("signature", "")
        case kind if block.pieces or kind == "tool_use":
            # Some servers say the whole input at once, where the block begins, as an object or as its text.
            written = _mended("".join(block.pieces))
            done["input"] = _input(done, written or _json_text(done.get("input")), malformed)
    if not fits(done):
        done = _mended_value(done)
        if not fits(done):
            raise TypeError("a block that no request could hold")
    return done


def _json_text(value: Any) -> str:
    return value if isinstance(value, str) else dumps(value) if value else ""


def _input(block: Block, text: str, malformed: dict[str, str]) -> dict[str, Any]:
    if not text:
        return {}
    try:
        value = loads(text)
    except JSONDecodeError:
        value = None
    if isinstance(value, dict) and fits(value):
        return value
    malformed[str(block.get("id"))] = text[:_MALFORMED_CHARS]
    return {}

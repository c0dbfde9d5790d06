"""From a step of the script to what goes over the wire: the message, its frames, and how the stream ends."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal
from uuid import uuid4

from shared.values import Block
from tests.fakes.model_cache import PromptCache
from tests.fakes.model_script import Step
from tests.fakes.model_thinking import signature
from tests.fakes.model_web import server_blocks
from tests.fakes.protocol import InvalidRequest, Message, pieces_of, sse, tokens

Ending = Literal["complete", "drop", "hang"]

_ERROR_TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    529: "overloaded_error",
}
_CUTS: Final = ("drop_after_deltas", "truncate_after_deltas", "error_after_deltas", "hang_after_deltas")


@dataclass(frozen=True, slots=True)
class Frame:
    """One event's bytes; deltas are what pauses and cuts are counted in."""

    data: bytes
    delta: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """A stream's frames and its end: ``drop`` breaks off in the middle of the HTTP body."""

    frames: list[Frame]
    ending: Ending


def error_type(step: Step) -> str:
    """Return the step's ``error_type``, or the one the API pairs with the step's status."""
    return str(step.get("error_type") or _ERROR_TYPES.get(step.get("status", 529), "api_error"))


def reply_to(step: Step, request: dict[str, Any], cache: PromptCache) -> Message:
    """Return the message that the step describes, with the usage that the request causes."""
    _check_offered(step, request)
    blocks = list(_blocks(step, signature(request)))
    stop = step.get("stop_reason") or ("tool_use" if step.get("tools") else "end_turn")
    usage = cache.usage(request, sum(tokens(block) for block in blocks))
    return Message(f"msg_{uuid4().hex}", request["model"], blocks, stop, usage, _deltas(step))


def _blocks(step: Step, signed: str) -> Iterator[Block]:
    if step.get("thinking"):
        yield {"type": "thinking", "thinking": step["thinking"], "signature": signed}
    yield from server_blocks(step)
    text = step.get("text") or "".join(step.get("deltas", ()))
    if text:
        cited = {"citations": step["citations"]} if step.get("citations") else {}
        yield {"type": "text", "text": text, **cited}
    for number, tool in enumerate(step.get("tools", ())):
        identity = tool.get("id") or f"toolu_{uuid4().hex[:20]}{number}"
        yield {"type": "tool_use", "id": identity, "name": tool["name"], "input": tool.get("input", {})}


def _check_offered(step: Step, request: dict[str, Any]) -> None:
    kinds = tuple(str(tool.get("type")) for tool in request.get("tools") or ())
    for tool in step.get("server_tools", ()):
        if not any(kind.startswith(tool["name"]) for kind in kinds):
            raise InvalidRequest(f"the request does not offer {tool['name']}")


def _deltas(step: Step) -> list[str]:
    if step.get("deltas"):
        return list(step["deltas"])
    text = step.get("text", "")
    return pieces_of(text, max(1, -(-len(text) // 4)))


def answer_of(step: Step, message: Message) -> Answer:
    """Return the stream of a message, cut short as the step says."""
    frames = [
        Frame(sse(event), event["type"] == "content_block_delta")
        for event in _raw_inputs(step, message.events())
    ]
    cut = next((name for name in _CUTS if name in step), None)
    if cut is None:
        return Answer(frames, "complete")
    frames = frames[: _end_of_delta(frames, step[cut])]
    if cut == "error_after_deltas":
        event = {
            "type": "error",
            "error": {"type": error_type(step), "message": step.get("message", "Overloaded")},
        }
        return Answer([*frames, Frame(sse(event), False)], "complete")
    endings: dict[str, Ending] = {"drop_after_deltas": "drop", "hang_after_deltas": "hang"}
    return Answer(frames, endings.get(cut, "complete"))


def _raw_inputs(step: Step, events: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    raw = iter([tool.get("input_json") for tool in step.get("tools", ())])
    current: str | None = None
    for event in events:
        if event["type"] == "content_block_start":
            current = next(raw) if event["content_block"]["type"] == "tool_use" else None
        if current is not None and event["type"] == "content_block_delta":
            event = {**event, "delta": {**event["delta"], "partial_json": current}}
            current = ""
        yield event


def _end_of_delta(frames: list[Frame], count: int) -> int:
    seen = 0
    for at, frame in enumerate(frames):
        if seen == count and (count or frame.delta):
            return at
        seen += frame.delta
    return len(frames)

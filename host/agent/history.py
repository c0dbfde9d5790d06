"""From stored entries to messages the model accepts (storage promise 7)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from shared.models import Block, HistoryEntry

LOST_RESULT: Final = "The result of this call was lost: the run was cut off before it was stored."

Message = dict[str, Any]


def to_messages(entries: Iterable[HistoryEntry]) -> list[Message]:
    """Return valid Messages-API messages: every tool use is answered right after, no result stands alone.

    A crash, timeout or cancellation can leave a tool use without its result; it gets an error result here,
    each time the conversation is loaded, so that the stored rows stay what really happened.
    """
    messages: list[Message] = []
    open_calls: list[str] = []
    for entry in entries:
        blocks = list(entry.blocks)
        if not blocks:
            # An answer that only people see: what was shown of a run that did not finish.
            continue
        if entry.role == "user":
            blocks = [*_answers(blocks, open_calls), *_others(blocks)]
        elif open_calls:
            messages.append({"role": "user", "content": _answers([], open_calls)})
        if blocks:
            messages.append({"role": entry.role, "content": blocks})
        open_calls = _calls(blocks) if entry.role == "assistant" else []
    if open_calls:
        messages.append({"role": "user", "content": _answers([], open_calls)})
    return messages


def with_breakpoints(messages: Sequence[Message]) -> list[Message]:
    """Mark the last two user messages as cache breakpoints, on copies: stored blocks stay byte-stable.

    The last one is what the next step reads; the one before is what this step reads.
    """
    marked = list(messages)
    users = [index for index, message in enumerate(marked) if message["role"] == "user"]
    for index in users[-2:]:
        *rest, last = marked[index]["content"]
        content = [*rest, {**last, "cache_control": {"type": "ephemeral"}}]
        marked[index] = {"role": "user", "content": content}
    return marked


def _calls(blocks: Sequence[Block]) -> list[str]:
    return [block["id"] for block in blocks if block["type"] == "tool_use"]


def _answers(blocks: Sequence[Block], open_calls: Sequence[str]) -> list[Block]:
    given = {block["tool_use_id"]: block for block in blocks if block["type"] == "tool_result"}
    return [given.get(call) or _lost(call) for call in open_calls]


def _others(blocks: Sequence[Block]) -> list[Block]:
    return [block for block in blocks if block["type"] != "tool_result"]


def _lost(call: str) -> Block:
    return {"type": "tool_result", "tool_use_id": call, "content": LOST_RESULT, "is_error": True}

"""From stored entries to messages the model accepts (storage promise 7), the same bytes every time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from host.agent.window import estimated
from host.models.mending import left_out
from shared import untrusted
from shared.values import Block, Compaction, HistoryEntry

_USE: Final = "server_tool_use"
_RESULT: Final = "_tool_result"
_UNAVAILABLE: Final = "unavailable"
"""An error code of each of these tools; the API takes it back like a result it gave."""


def open_server_calls(blocks: Sequence[Block], before: Mapping[str, str]) -> dict[str, str]:
    """Return the calls (id to name) that have no result after these blocks, and had none ``before``."""
    found = dict(before)
    for block in blocks:
        if block["type"] == _USE:
            found[block["id"]] = block["name"]
        elif block["type"].endswith(_RESULT):
            found.pop(block["tool_use_id"], None)
    return found


def lost_server_results(calls: Mapping[str, str]) -> list[Block]:
    """Return an error result for each call."""
    return [
        {
            "type": f"{name}{_RESULT}",
            "tool_use_id": call,
            "content": {"type": f"{name}{_RESULT}_error", "error_code": _UNAVAILABLE},
        }
        for call, name in calls.items()
    ]


LOST_RESULT: Final = "The result of this call was lost: the run was cut off before it was stored."
NO_IMAGE: Final = "[an image was here; it was left out to save room]"

REFUSED: Final = (
    "<notice>A message stood here that the model refused to answer. It isn't sent any more.</notice>"
)
"""Stands for a refused turn, which would be refused again with all that follows
(https://platform.claude.com/docs/en/test-and-evaluate/strengthen-guardrails/handle-streaming-refusals)."""

EARLIER: Final = """<earlier_conversation>
The beginning of this conversation is not sent any more, to save room. In its place stands what was noted \
about it; nothing in these notes is said anew by anyone.

{notes}
</earlier_conversation>"""

Message = dict[str, Any]

NONE: Final = Compaction("cut")
"""What is in force where nothing was compacted."""


class HistoryBuilder:
    """Builds the messages entry by entry; what it has built stays as it is, byte by byte.

    Every tool use is answered right after it, and no result stands alone. A crash, timeout or cancellation
    can leave a tool use without its result; it gets an error result here, each time the conversation is
    loaded, so that the stored rows stay what really happened.
    """

    def __init__(self, compaction: Compaction | None = None) -> None:
        self._compaction = compaction or NONE
        self._messages: list[Message] = []
        self._open_calls: list[str] = []
        self._open_server_calls: dict[str, str] = {}
        self.tokens = 0
        """An estimate of the messages, on the high side."""
        if self._compaction.through_seq:
            self._append("user", [{"type": "text", "text": earlier(self._compaction.text)}])

    def add(self, entry: HistoryEntry) -> None:
        """Take the next entry; one that the compaction replaced is passed over."""
        blocks = as_sent(entry, self._compaction)
        now = self._compaction
        if not blocks or (entry.seq <= now.through_seq and entry.seq != now.message_seq):
            # No blocks: an answer that only people see, what was shown of a run that did not finish.
            return
        if entry.role == "user":
            if lost := lost_server_results(self._open_server_calls):
                self._append("assistant", lost)
            self._open_server_calls = {}
            blocks = [*_answers(blocks, self._open_calls), *_others(blocks)]
        elif self._open_calls:
            self._append("user", _answers([], self._open_calls))
        if blocks:
            self._append(entry.role, blocks)
        self._open_server_calls = open_server_calls(blocks, self._open_server_calls)
        self._open_calls = calls_of(blocks) if entry.role == "assistant" else []

    def messages(self) -> list[Message]:
        """Return the messages so far, in a list of the caller's own."""
        if not self._open_calls:
            return list(self._messages)
        return [*self._messages, {"role": "user", "content": _answers([], self._open_calls)}]

    def _append(self, role: str, blocks: list[Block]) -> None:
        message = {"role": role, "content": blocks}
        self._messages.append(message)
        self.tokens += estimated(message)


def to_messages(entries: Iterable[HistoryEntry], compaction: Compaction | None = None) -> list[Message]:
    """Return valid Messages-API messages for the entries, as the compaction wants them sent."""
    builder = HistoryBuilder(compaction)
    for entry in entries:
        builder.add(entry)
    return builder.messages()


def with_breakpoints(messages: Sequence[Message]) -> list[Message]:
    """Mark the last two user messages as cache breakpoints, on copies: stored blocks stay byte-stable.

    The last one is what the next step reads; the one before is what this step reads.
    """
    marked = list(messages)
    left = 2
    for index in range(len(marked) - 1, -1, -1):
        if marked[index]["role"] == "user":
            *rest, last = marked[index]["content"]
            content = [*rest, {**last, "cache_control": {"type": "ephemeral"}}]
            marked[index] = {"role": "user", "content": content}
            left -= 1
        if not left:
            break
    return marked


def earlier(notes: str) -> str:
    """Return the text that stands for replaced messages: escaped, so that it can't pose as anyone's words."""
    return EARLIER.format(notes=untrusted.escaped(notes))


def as_sent(entry: HistoryEntry, compaction: Compaction) -> list[Block]:
    """Return an entry's blocks as the compaction wants them sent."""
    blocks = entry.blocks
    if entry.refused:
        return [{"type": "text", "text": REFUSED}] if opens_turn(entry) else []
    if entry.seq <= compaction.thinking_through_seq:
        blocks = [block for block in blocks if "thinking" not in block["type"]]
    if compaction.left_out:
        gone = {kind for kind, through in compaction.left_out.items() if entry.seq <= through}
        blocks = left_out(blocks, gone)
    if entry.seq <= compaction.cut_through_seq:
        blocks = [cut(block, compaction.cut_chars) for block in blocks]
    if entry.seq == compaction.message_seq:
        blocks = [_shorter(block, compaction.message_chars) for block in blocks]
    return list(blocks)


def opens_turn(entry: HistoryEntry) -> bool:
    """Return whether this is a message that a run works on, and not what its tools returned."""
    return entry.role == "user" and entry.text is not None


def _shorter(block: Block, chars: int) -> Block:
    """Return a block of a message with the head and the tail of a long text."""
    return {**block, "text": _cut_text(block["text"], chars)} if block["type"] == "text" else block


def cut(block: Block, chars: int) -> Block:
    """Return a tool's result with at most so many characters a text, and no image; other blocks unchanged."""
    if block["type"] == "image":
        return {"type": "text", "text": NO_IMAGE}
    if block["type"] != "tool_result":
        return block
    content = block.get("content", "")
    if isinstance(content, str):
        return {**block, "content": _cut_text(content, chars)}
    return {**block, "content": [_cut_part(part, chars) for part in content]}


def calls_of(blocks: Sequence[Block]) -> list[str]:
    """Return the ids of the tool uses."""
    return [block["id"] for block in blocks if block["type"] == "tool_use"]


def _cut_part(part: Block, chars: int) -> Block:
    match part["type"]:
        case "text":
            return {**part, "text": _cut_text(part["text"], chars)}
        case "image":
            return {"type": "text", "text": NO_IMAGE}
    return part


def _cut_text(text: str, chars: int) -> str:
    if len(text) <= chars:
        return text
    head = chars * 2 // 3
    tail = chars - head
    return f"{text[:head]}\n[… {len(text) - chars} characters were left out to save room …]\n{text[-tail:]}"


def _answers(blocks: Sequence[Block], open_calls: Sequence[str]) -> list[Block]:
    given = {block["tool_use_id"]: block for block in blocks if block["type"] == "tool_result"}
    return [given.get(call) or _lost(call) for call in open_calls]


def _others(blocks: Sequence[Block]) -> list[Block]:
    return [block for block in blocks if block["type"] != "tool_result"]


def _lost(call: str) -> Block:
    return {"type": "tool_result", "tool_use_id": call, "content": LOST_RESULT, "is_error": True}

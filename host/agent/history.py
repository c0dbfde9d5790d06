"""From stored entries to messages the model accepts (storage promise 7), the same bytes every time.

They are kept between turns, so that a turn reads only what is new.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from host.agent.media import SHOWN, stand_in
from host.agent.window import estimated, shown
from host.models.mending import left_out
from host.ports import Message
from shared import untrusted
from shared.store.store import Store
from shared.values import Block, Compaction, HistoryEntry, Lease

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

NONE: Final = Compaction("cut")
"""What is in force where nothing was compacted."""


MOST_TOKENS: Final = 2_000_000
"""Tokens, by the estimate, of all conversations kept: some 6 MB of text, four times that in memory."""

MOST_CONVERSATIONS: Final = 500


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
        self._given: list[Block] = []
        """Results of a reply whose other calls wait for a person."""
        self._open_server_calls: dict[str, str] = {}
        self.tokens = 0
        """An estimate of the messages, on the high side."""
        self.media = False
        """Whether pictures or documents are among what was added."""
        if self._compaction.through_seq:
            self._append("user", [{"type": "text", "text": earlier(self._compaction.text)}])

    def add(self, entry: HistoryEntry) -> None:
        """Take the next entry; one that the compaction replaced is passed over."""
        blocks = as_sent(entry, self._compaction)
        now = self._compaction
        if not blocks or (entry.seq <= now.through_seq and entry.seq != now.message_seq):
            # No blocks: an answer that only people see, what was shown of a run that did not finish.
            return
        self.media = self.media or any(shown(blocks))
        if entry.role == "user":
            if self._open_server_calls:
                self._append("assistant", lost_server_results(self._open_server_calls))
            self._open_server_calls = {}
            blocks = self._with_results(blocks)
        elif self._open_calls:
            self._append("user", _answers(self._given, self._open_calls))
            self._given = []
        if blocks:
            self._append(entry.role, blocks)
        self._open_server_calls = open_server_calls(blocks, self._open_server_calls)
        if entry.role == "assistant":
            self._open_calls = calls_of(blocks)

    def _with_results(self, blocks: list[Block]) -> list[Block]:
        """Return what answers the open calls, once all results are there or something else follows."""
        others = [block for block in blocks if block["type"] != "tool_result"]
        if not self._open_calls:
            return others
        given = [*self._given, *(block for block in blocks if block["type"] == "tool_result")]
        if not others and len(given) < len(self._open_calls):
            self._given = given
            return []
        open_calls, self._open_calls, self._given = self._open_calls, [], []
        return [*_answers(given, open_calls), *others]

    def messages(self) -> list[Message]:
        """Return the messages so far, in a list of the caller's own."""
        if not self._open_calls:
            return list(self._messages)
        return [*self._messages, {"role": "user", "content": _answers(self._given, self._open_calls)}]

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


@dataclass(slots=True)
class Loaded:
    """A conversation at the beginning of a turn. ``tokens``: an estimate of the messages.

    ``media``: whether there are pictures or documents among them.
    """

    messages: list[Message]
    tokens: int
    compaction: Compaction | None
    fresh: bool
    """It was read from its beginning."""
    media: bool = False


@dataclass(slots=True)
class _Kept:
    """What was built of a conversation: of this one (ids can come again), by this compaction, up to here."""

    session_id: str
    compaction: Compaction | None
    builder: HistoryBuilder
    last_seq: int


class Histories:
    """Reads conversations for the model. The conversations used longest ago are forgotten first."""

    def __init__(
        self, store: Store, *, most_tokens: int = MOST_TOKENS, most_conversations: int = MOST_CONVERSATIONS
    ) -> None:
        self._store = store
        self._most_tokens = most_tokens
        self._most_conversations = most_conversations
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._tokens = 0

    async def load(self, lease: Lease) -> Loaded:
        """Return the conversation; what was sent of it before is the beginning of what is sent now."""
        conversation_id = lease.conversation_id
        kept = self._take(lease)
        fresh = kept is None
        if kept is None:
            compaction = await self._store.compactions.latest(conversation_id) if lease.compaction else None
            through = compaction.through_seq if compaction else 0
            kept = _Kept(lease.session_id, compaction, HistoryBuilder(compaction), through)
            entries = await sent_entries(self._store, conversation_id, compaction or NONE)
        else:
            entries = await self._store.conversations.history(conversation_id, after=kept.last_seq)
        for entry in entries:
            kept.builder.add(entry)
            kept.last_seq = max(entry.seq, kept.last_seq)
        self._put_back(conversation_id, kept)
        return Loaded(
            messages=kept.builder.messages(),
            tokens=kept.builder.tokens,
            compaction=kept.compaction,
            fresh=fresh,
            media=kept.builder.media,
        )

    def forget(self, conversation_id: str) -> None:
        """Drop what is kept of a conversation."""
        kept = self._kept.pop(conversation_id, None)
        if kept is not None:
            self._tokens -= kept.builder.tokens

    def _take(self, lease: Lease) -> _Kept | None:
        """Take a conversation out, if what is kept of it is what would be built again."""
        kept = self._kept.get(lease.conversation_id)
        if kept is None:
            return None
        self.forget(lease.conversation_id)
        number = kept.compaction.number if kept.compaction else 0
        return kept if (kept.session_id, number) == (lease.session_id, lease.compaction) else None

    def _put_back(self, conversation_id: str, kept: _Kept) -> None:
        self.forget(conversation_id)
        if kept.builder.tokens > self._most_tokens:
            return
        self._kept[conversation_id] = kept
        self._tokens += kept.builder.tokens
        while self._tokens > self._most_tokens or len(self._kept) > self._most_conversations:
            self.forget(next(iter(self._kept)))


async def sent_entries(store: Store, conversation_id: str, compaction: Compaction) -> list[HistoryEntry]:
    """Return what is sent as it is stored: what follows the notes, the message of a parted turn first."""
    entries = await store.conversations.history(conversation_id, after=compaction.through_seq)
    if not compaction.message_seq:
        return entries
    at = compaction.message_seq
    return [*await store.conversations.history(conversation_id, after=at - 1, through=at), *entries]


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
    if block["type"] in SHOWN:
        return stand_in(block)
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
            return stand_in(part)
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


def _lost(call: str) -> Block:
    return {"type": "tool_result", "tool_use_id": call, "content": LOST_RESULT, "is_error": True}

"""Conversations as they are sent, kept between turns so that a turn reads only what is new."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from host.agent.history import NONE, HistoryBuilder, Message
from shared.store.store import Store
from shared.values import Compaction, HistoryEntry, Lease

MOST_TOKENS: Final = 2_000_000
"""Tokens, by the estimate, of all conversations kept: some 6 MB of text, four times that in memory."""

MOST_CONVERSATIONS: Final = 500


@dataclass(slots=True)
class Loaded:
    """A conversation at the beginning of a turn. ``tokens``: an estimate of the messages."""

    messages: list[Message]
    tokens: int
    compaction: Compaction | None
    fresh: bool
    """It was read from its beginning."""


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
        compaction = await self._store.compactions.latest(conversation_id)
        kept = self._take(conversation_id, lease.session_id, compaction)
        fresh = kept is None
        if kept is None:
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
            compaction=compaction,
            fresh=fresh,
        )

    def forget(self, conversation_id: str) -> None:
        """Drop what is kept of a conversation."""
        kept = self._kept.pop(conversation_id, None)
        if kept is not None:
            self._tokens -= kept.builder.tokens

    def _take(self, conversation_id: str, session_id: str, compaction: Compaction | None) -> _Kept | None:
        """Take a conversation out, if what is kept of it is what would be built again."""
        kept = self._kept.get(conversation_id)
        self.forget(conversation_id)
        if kept is None or kept.session_id != session_id or _number(kept.compaction) != _number(compaction):
            return None
        return kept

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


def _number(compaction: Compaction | None) -> int:
    return compaction.number if compaction else 0

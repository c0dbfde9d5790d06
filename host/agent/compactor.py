"""Keeps a run's conversation within the model's window: cuts, sums up, and at the worst leaves out."""

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, Final, Protocol

import anyio

from host.agent import compaction as planning
from host.agent.asking import Recorder, within_output
from host.agent.compaction import (
    PAUSE_S,
    TRIES,
    Cut,
    Part,
    SumUp,
    ask_for_notes,
    cut_off,
    dropped,
    left_out,
    summary_request,
    summary_text,
    summed_up,
)
from host.agent.endings import TooLong
from host.agent.history import NONE, Loaded, as_sent, earlier, opens_turn, sent_entries, to_messages
from host.agent.media import without_media
from host.agent.window import BYTES_PER_TOKEN, Sizes, Window, Windows, estimated
from host.ports import Message, Model, ModelError
from shared.store.store import Store
from shared.values import Compaction, HistoryEntry, Lease

Archive = Callable[[str], Awaitable[str | None]]
"""Writes what is missing in a conversation's archive; returns a warning if that failed."""

ROUNDS: Final = 12
"""Compactions in a row before a conversation that is still too long is given up."""

SUMMARY_PART: Final = 0.2
"""Part of the room for messages that notes may take."""

MESSAGE_PART: Final = 0.2
"""Part of the room that the message of a parted turn may take; of a longer one head and tail stand."""

MOST_SUMMARY_TOKENS: Final = 4_000

REFUSED_AGAIN: Final = (
    "The model has declined several times in a row, so earlier messages may be the cause: more of them "
    "are left out with each time."
)
LEFT_OUT_WARNING: Final = "Older messages could not be summed up, so they were left out."

logger = logging.getLogger("picoclaw.agent")


class CompactionRecorder(Recorder, Protocol):
    """Who stores compactions too."""

    def warn(self, sentence: str) -> None:
        """Put a warning into the answer, once."""

    async def compacted(self, compaction: Compaction) -> Compaction:
        """Put a compaction in force; raises LeaseLost."""


class Compactor(Window):
    """The window of a run's own agent. Every step of the run has to be in the store already.

    What shortens the messages raises Paused and LeaseLost too.
    """

    def __init__(
        self,
        store: Store,
        windows: Windows,
        archive: Archive | None,
        lease: Lease,
        loaded: Loaded,
        recorder: CompactionRecorder,
    ) -> None:
        super().__init__(windows, len(loaded.messages), loaded.tokens, loaded.media)
        self._store = store
        self._archive = None if lease.temporary else archive
        self._conversation_id = lease.conversation_id
        self._recorder = recorder
        self._compaction = self._begun_with = loaded.compaction or NONE

    async def mended(self, messages: list[Message], kinds: Sequence[str]) -> None:
        """Keep leaving out what the API refused; raises LeaseLost."""
        entries = await self._entries()
        now = self._compaction
        through = entries[-1].seq if entries else now.through_seq
        thinking = through if "thinking" in kinds else now.thinking_through_seq
        gone = {kind: through for kind in kinds if kind not in ("thinking", "thinking_mode")}
        if gone or thinking > now.thinking_through_seq:
            same = cut_off(now, Cut(now.cut_through_seq, now.cut_chars), thinking)
            await self._put_in_force(replace(same, left_out={**now.left_out, **gone}))
            self._rebuild(messages, entries)

    async def take_back(self) -> None:
        """Take out of the notes what was refused: those of this run, and all if no turn is left to refuse."""
        now, before = self._compaction, self._begun_with
        if now.through_seq > before.through_seq:
            thinking = now.thinking_through_seq
            same = replace(before, kind="cut", thinking_through_seq=thinking, left_out=now.left_out)
            await self._put_in_force(same)
        now = self._compaction
        earlier_ones = [entry.refused for entry in await self._entries() if opens_turn(entry)][:-1]
        if earlier_ones and earlier_ones[-1]:
            self._recorder.warn(REFUSED_AGAIN)
            if now.through_seq and all(earlier_ones):
                await self._put_in_force(replace(now, kind="dropped", text=left_out("", 1, now.through_seq)))

    async def archive(self) -> None:
        """Write what is missing in the archive; a failure is a warning."""
        if self._archive is not None:
            warning = await self._archive(self._conversation_id)
            if warning is not None:
                self._recorder.warn(warning)

    # --- one compaction after the other

    async def shorten(
        self, messages: list[Message], request: dict[str, Any], model: Model, *, anyway: bool = False
    ) -> bool:
        """Compact until the messages fit; ``anyway``: to half if they seem to fit."""
        for number in range(ROUNDS):
            sizes = self.sizes(messages, request, model)
            room = min(sizes.room, sizes.messages // 2) if anyway and not number else sizes.room
            entries = await self._entries()
            await self._round(entries, request, model, sizes, room)
            self._rebuild(messages, entries)
            after = self.sizes(messages, request, model).messages
            if after <= sizes.room or after >= sizes.messages:
                break
        await self.archive()
        return True

    async def _round(
        self,
        entries: Sequence[HistoryEntry],
        request: dict[str, Any],
        model: Model,
        sizes: Sizes,
        room: int,
    ) -> None:
        parts = planning.parts_of(self._kept(entries), self._compaction, sizes.factor)
        chosen = planning.plan(parts, max(room - self._standing_tokens(entries, sizes), 0), sizes.factor)
        if sizes.room <= 0 or chosen is None:
            raise self._too_long(parts, sizes)
        thinking = self._thinking_through(parts, request)
        if isinstance(chosen, SumUp):
            chosen = await self._sum_up(entries, parts, chosen, thinking, sizes, request, model)
        if isinstance(chosen, Cut):
            await self._put_in_force(cut_off(self._compaction, chosen, thinking))

    async def _sum_up(
        self,
        entries: Sequence[HistoryEntry],
        parts: Sequence[Part],
        chosen: SumUp,
        thinking: int,
        sizes: Sizes,
        request: dict[str, Any],
        model: Model,
    ) -> Cut | None:
        """Put a summary in force, or, if none can be made, a note; return a cut that would do instead."""
        stands, kept, now = self._standing_tokens(entries, sizes), self._kept(entries), self._compaction
        output = min(request["max_tokens"], sizes.window // 2)
        room = sizes.window - output - sizes.prefix - stands
        share = int(sizes.room * MESSAGE_PART / sizes.factor)
        room -= int(estimated(planning.words_ahead(entries, now.through_seq, share)) * sizes.factor)
        taken = planning.fitting(parts, chosen.count, room - MOST_SUMMARY_TOKENS // 8)
        made = None
        if taken is None:
            most = chosen.count
            first = kept[: next((at for at in range(1, most) if parts[at].parts), most)]
        else:
            count, shorter = taken
            first = kept[:count]
            last = first[-1].seq
            view = cut_off(now, Cut(last, planning.CUT_CHARS), last) if shorter else now
            asked = without_media(to_messages([entry for entry in entries if entry.seq <= last], view))
            ahead = planning.words_ahead(entries, last, share)
            made = await self._summary(first, asked, ahead, sizes, request, model)
            instead = planning.plan(parts, sizes.room - stands, sizes.factor, hard=True)
            if made is None and isinstance(instead, Cut):
                return instead
        if made is None:
            self._recorder.warn(LEFT_OUT_WARNING)
            made = dropped(now, first)
        await self._put_in_force(
            replace(self._with_message(made, entries, sizes), thinking_through_seq=thinking)
        )
        return None

    async def _summary(
        self,
        first: Sequence[HistoryEntry],
        messages: list[Message],
        ahead: str,
        sizes: Sizes,
        request: dict[str, Any],
        model: Model,
    ) -> Compaction | None:
        """Ask the model for notes; None if it gives none. Raises Paused."""
        most = max(200, min(MOST_SUMMARY_TOKENS, int(sizes.room * SUMMARY_PART)))
        output = request["max_tokens"] - request.get("thinking", {}).get("budget_tokens", 0)
        for again in range(TRIES):
            # Half as long the second time: the first may have been cut for its length.
            tokens = min(most, output) >> again
            asked = summary_request(request, messages, tokens, ahead=ahead, again=bool(again))
            asked = await self._recorder.reserve(asked, model.ids)
            try:
                reply = await ask_for_notes(within_output(asked), model, self._recorder)
            except ModelError as error:
                logger.warning("A summary could not be made: %s", error)
                if again or not error.retryable:
                    return None
                await anyio.sleep(PAUSE_S)
                continue
            replaced = estimated([entry.blocks for entry in first]) * BYTES_PER_TOKEN
            text = summary_text(reply, int(most * BYTES_PER_TOKEN / sizes.factor), replaced)
            if text:
                return summed_up(self._compaction, first, text, reply)
            logger.warning("The model made no summary", extra={"stop_reason": reply.stop_reason})
        return None

    # --- what is in force

    async def _put_in_force(self, compaction: Compaction) -> None:
        self._compaction = await self._recorder.compacted(compaction)

    async def _entries(self) -> list[HistoryEntry]:
        return await sent_entries(self._store, self._conversation_id, self._compaction)

    def _kept(self, entries: Sequence[HistoryEntry]) -> Sequence[HistoryEntry]:
        """Return the entries without the message that stands although what is around it was replaced."""
        return entries[1:] if self._compaction.message_seq and entries else entries

    def _with_message(self, made: Compaction, entries: Sequence[HistoryEntry], sizes: Sizes) -> Compaction:
        """Let the message stand that the kept part of its turn works on."""
        message = planning.standing(entries, made.through_seq)
        if message is None:
            return replace(made, message_seq=0, message_chars=0)
        chars = planning.standing_chars(message, int(sizes.room * MESSAGE_PART / sizes.factor))
        if message.seq == made.message_seq:
            chars = min(chars, made.message_chars)
        return replace(made, message_seq=message.seq, message_chars=chars)

    def _rebuild(self, messages: list[Message], entries: Sequence[HistoryEntry]) -> None:
        messages[:] = to_messages(entries, self._compaction)
        self._changed()

    # --- sizes

    def _standing_tokens(self, entries: Sequence[HistoryEntry], sizes: Sizes) -> int:
        """Return the tokens of the notes and of the message that stays whatever is replaced."""
        now = self._compaction
        notes = estimated(earlier(now.text)) if now.through_seq else 0
        message = planning.standing(entries, entries[-1].seq - 1) if entries else None
        size = 0 if message is None else estimated(as_sent(message, now))
        return int(notes * sizes.factor) + min(int(size * sizes.factor), int(sizes.room * MESSAGE_PART))

    def _thinking_through(self, parts: Sequence[Part], request: dict[str, Any]) -> int:
        """Return up to where thinking is left out, because what stands before it is about to change.

        A model that thinks on a budget wants to see the thinking of its running turn, and doesn't mind.
        """
        through = parts[-1].seq if parts else 0
        if request.get("thinking", {}).get("type") == "enabled":
            through = max(planning.turn_begins(parts) - 1, 0)
        return max(through, self._compaction.thinking_through_seq)

    def _too_long(self, parts: Sequence[Part], sizes: Sizes) -> TooLong:
        if sizes.room <= 0:
            return TooLong(
                f"The instructions and tools alone need about {sizes.prefix:,} tokens; "
                f"with {sizes.window:,} in the model's window there is no room for a conversation."
            )
        newest = parts[-1].tokens if parts else 0
        if newest <= sizes.room:
            return TooLong(
                "The request is too large for the model's API, and nothing more of it can be left out. "
                "Send less, or put it into a file."
            )
        return TooLong(
            f"The message is too long: it needs about {newest:,} tokens, and {sizes.room:,} fit into the "
            "model's window beside instructions, tools and the answer. Send less, or put it into a file."
        )

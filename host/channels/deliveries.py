"""The way out: each chat gets its messages in order, each is tried until it arrived or never will.

A message is stored before it is tried and marked after it arrived, so a crash in between sends it once more:
at least once, never not at all. What is shown by editing a message is not affected: the same edit twice is
one.
"""

import logging
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from typing import Final, TypeVar

import anyio

from host.agent.text import strip_internal
from host.channels.base import Channel, ChannelFault, ChatMoved, Gone, TryLater, Undeliverable
from host.channels.chats import Crowd, Rules
from host.channels.intake import Cards
from host.channels.splitting import split
from host.ports import SandboxFault
from host.runs.conversation_files import SentFiles
from host.runs.meter import Ledger
from shared import jsons, untrusted
from shared.approval_values import Approval
from shared.clock import DAY_MS, iso, now_ms
from shared.ids import MESSAGE, new_id, run_of_pause
from shared.principals import OPERATOR
from shared.store.sql.chats import SAID, Chat, Delivery
from shared.values import NewMessage

logger = logging.getLogger("picoclaw.channels")

T = TypeVar("T")

FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 60.0
GIVE_UP_AFTER_MS: Final = 3 * DAY_MS
"""A message that could not be delivered for so long is given up."""

MOST_UNTOLD: Final = 100
FILE_WITHIN_S: Final = 70.0
"""The same for a call that brings a file."""
SOON_MS: Final = 250
CALL_WITHIN_S: Final = 20.0
"""A call of the channel that was begun is not torn by a stop, for at most so long."""


class Deliveries:
    """Delivers one channel's messages."""

    def __init__(
        self, channel: Channel, ledger: Ledger, rules: Rules, end_marker: str, files: SentFiles, cards: Cards
    ) -> None:
        self._cards = cards
        self._channel = channel
        self._files = files
        self._ledger = ledger
        self._rules = rules
        self._end_marker = end_marker
        self._book = ledger.store.channels
        self._last_sent: dict[str, str] = {}
        self._crowd = Crowd(self._due, self._serve)
        self.run, self.wake = self._crowd.run, self._crowd.wake

    async def _due(self, limit: int) -> list[str]:
        await self._tell_failures()
        await self._cards.remove_buttons()
        return await self._book.chats_due(self._rules.channel, now_ms(), limit=limit)

    async def _serve(self, chat_id: str) -> None:
        while True:
            delivery = await self._book.next_delivery(self._rules.channel, chat_id, now_ms())
            if delivery is None:
                return
            # What another process stored a moment ago may not be on the volume yet.
            await self._ledger.store.durable()
            await self._deliver(delivery)
            if delivery.file is not None and not await self._book.is_waited_for(delivery.saying.source):
                with suppress(SandboxFault):
                    await self._files.drop(*await self._copy_of(delivery))
            await self._ledger.store.durable()

    async def _deliver(self, delivery: Delivery) -> None:
        chat = await self._may_hear(delivery)
        if chat is None:
            await self._book.failed(delivery.number, "the chat may not hear this any more", now_ms())
            return
        asked = await self._asked(delivery)
        if asked is None:
            await self._book.put_off(delivery.number, now_ms() + SOON_MS, "its run has not ended")
            return
        shown = self._shown(delivery)
        parts = [] if asked else split(shown, self._channel.longest)
        try:
            for at, request in enumerate(asked):
                if at >= delivery.parts_sent:
                    await _untorn(self._ask(delivery, request, at, chat))
            if delivery.file is not None:
                await _untorn(self._send_file(delivery, shown), FILE_WITHIN_S)
                parts = []
            for at in range(delivery.parts_sent, len(parts)):
                await _untorn(self._send(delivery, parts[at], at))
        except Undeliverable as fault:
            await self._give_up(delivery, str(fault))
        except ChatMoved as moved:
            await self._book.move(self._rules.channel, delivery.chat_id, moved.to)
        except ChannelFault as fault:
            await self._put_off(delivery, fault)
        else:
            await self._book.sent(delivery.number, now_ms())

    def _shown(self, delivery: Delivery) -> str:
        text = delivery.saying.text
        if marker := self._end_marker:
            text = text.replace(marker, "").strip()
        return self._ledger.redactor.text(strip_internal(text))

    async def _asked(self, delivery: Delivery) -> Sequence[Approval] | None:
        """Return the requests that a pause's message is about, None while they are being stored."""
        if not (self._channel.has_buttons and delivery.saying.source.startswith(SAID)):
            return ()
        run_id = run_of_pause(delivery.saying.source.removeprefix(SAID))
        return await self._ledger.store.approvals.of_pause(run_id)

    async def _ask(self, delivery: Delivery, request: Approval, at: int, chat: Chat) -> None:
        self._last_sent[delivery.chat_id] = await self._cards.show(request, chat, delivery.conversation_id)
        await self._book.part_sent(delivery.number, at + 1)

    async def _send(self, delivery: Delivery, part: str, at: int) -> None:
        saying = delivery.saying
        if at > 0 or saying.draft_id is None or not await self._settle_draft(delivery, saying.draft_id, part):
            reply_to = saying.reply_to if at == 0 else None
            sent = await self._channel.send(delivery.chat_id, part, reply_to)
            self._last_sent[delivery.chat_id] = sent
        await self._book.part_sent(delivery.number, at + 1)

    async def _send_file(self, delivery: Delivery, caption: str) -> None:
        copy = await self._copy_of(delivery)
        try:
            descriptor = await self._files.open(*copy)
        except SandboxFault as fault:
            raise Undeliverable(f"its file isn't on this host any more ({fault})") from None
        name = jsons.loads(delivery.file or "")["path"].rpartition("/")[2]
        with open(descriptor, "rb") as file:  # noqa: PTH123, ASYNC230 - it is open already
            await self._channel.send_file(delivery.chat_id, file, name, caption)

    async def _copy_of(self, delivery: Delivery) -> tuple[str, str, str]:
        """Return whose the copy of a delivery's file is, and its name."""
        conversation = await self._ledger.store.conversations.get(delivery.conversation_id)
        whose = OPERATOR if conversation is None else conversation.principal_id
        return whose, delivery.conversation_id, jsons.loads(delivery.file or "").get("copy", "none")

    async def _settle_draft(self, delivery: Delivery, draft_id: str, part: str) -> bool:
        """Turn the draft into the answer's first part, or remove it if other messages stand below it."""
        last = self._last_sent.get(delivery.chat_id)
        if last is not None and _is_newer(last, draft_id):
            await self._channel.delete(delivery.chat_id, draft_id)
            return False
        try:
            await self._channel.edit(delivery.chat_id, draft_id, part)
        except Gone:
            return False
        return True

    async def _may_hear(self, delivery: Delivery) -> Chat | None:
        members = await self._book.members(self._rules.channel, delivery.conversation_id)
        chat = next((chat for chat in members if chat.id == delivery.chat_id), None)
        return chat if chat is not None and self._rules.may_hear(chat, delivery.conversation_id) else None

    async def _put_off(self, delivery: Delivery, fault: ChannelFault) -> None:
        now = now_ms()
        if now - delivery.created_at > GIVE_UP_AFTER_MS:
            await self._give_up(delivery, str(fault))
            return
        # The attempts of earlier parts were forgotten when those parts arrived.
        pause = min(FIRST_PAUSE_S * 2.0 ** min(delivery.attempts, 10), LONGEST_PAUSE_S)
        if isinstance(fault, TryLater) and fault.after_s is not None:
            pause = max(fault.after_s, 0.0)
        await self._book.put_off(delivery.number, now + round(pause * 1000), str(fault))
        logger.info(
            "A message is delivered later",
            extra={"channel": self._rules.channel, "chat": delivery.chat_id, "seconds": round(pause, 1)},
        )

    async def _give_up(self, delivery: Delivery, error: str) -> None:
        logger.warning(
            "A message cannot be delivered",
            extra={"channel": self._rules.channel, "chat": delivery.chat_id, "error": error},
        )
        await self._book.failed(delivery.number, error, now_ms())

    async def _tell_failures(self) -> None:
        """Let the conversations know what did not arrive; one that is busy hears of it afterwards."""
        for failed in await self._book.untold(self._rules.channel, limit=MOST_UNTOLD):
            now = now_ms()
            text = (
                f"A message to {self._rules.channel} chat {failed.chat_id} could not be delivered: "
                f"{failed.error}."
            )
            await self._book.tell(failed.number, notice(text, now), now)


def notice(text: str, now: int) -> NewMessage:
    """Return a message of the host's own, which no person can write: their tags are escaped."""
    block = {"type": "text", "text": f'<notice time="{iso(now)}">{untrusted.escaped(text)}</notice>'}
    return NewMessage(new_id(MESSAGE), "user", [block], text, "system", "system")


def _is_newer(one: str, other: str) -> bool:
    """Compare a channel's message ids, which count up where they are numbers."""
    return one.isdecimal() and other.isdecimal() and int(one) > int(other)


async def _untorn(work: Awaitable[T], within_s: float = CALL_WITHIN_S) -> T:
    """Let a call and the mark that it arrived finish together, although the host is stopping."""
    with anyio.CancelScope(shield=True), anyio.move_on_after(within_s):
        try:
            return await work
        except ChannelFault:
            raise
        except Exception as error:
            logger.exception("A channel failed to deliver a message")
            raise TryLater(f"the channel failed: {type(error).__name__}") from error
    raise TryLater("the channel did not answer in time")

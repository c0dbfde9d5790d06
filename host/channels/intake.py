"""The one way in: who may write, how often, and nothing confirmed before it is on the volume."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final

from host.channels.base import Brought, Incoming, Moved, Pressed, Sender
from host.channels.chats import Rules, Wake
from host.channels.messages import cleaned, to_update, usable
from host.runs.admission import RateLimit
from host.runs.principals import PrincipalCache
from shared.clock import now_ms
from shared.store.sql.chats import Chat, Saying
from shared.store.store import Store

logger = logging.getLogger("picoclaw.channels")

MOST_WAITING: Final = 100
"""Messages of a chat that may wait to be handled."""

TOO_OFTEN: Final = "You write faster than I am allowed to read, so I left out what came last. Wait a minute."
EDITS: Final = "I don't read edited messages. Send me what has changed as a new message."
TOO_MANY: Final = f"{MOST_WAITING} of your messages are waiting already, so I left out what came last."


class ChannelDoor:
    """Implements ``Door`` for one channel."""

    def __init__(
        self,
        store: Store,
        rules: Rules,
        principals: PrincipalCache,
        press: Callable[[Pressed], Awaitable[None]],
        *,
        wake: Wake,
        connected: Wake,
    ) -> None:
        self._store = store
        self._principals = principals
        self._rules = rules
        self._book = store.channels
        self._press = press
        self._wake = wake
        self._connected = connected
        # By when they were written: what piled up while the host was away did not come all at once.
        self._moment = 0.0
        self._rate = RateLimit(rules.settings.messages_per_minute, clock=lambda: self._moment)
        self._notices = RateLimit(1)
        self._log = RateLimit(1)
        self._turned_away = 0
        self._album = ("", "")

    def connected(self) -> None:
        """Say that the channel works."""
        self._connected()

    async def take(self, *messages: Brought) -> None:
        """Return when what may come in is on the volume. Raises PicoError."""
        stored = False
        for message in messages:
            if isinstance(message, Pressed):
                await self._pressed(message)
            elif isinstance(message, Moved):
                await self._book.move(self._rules.channel, message.chat_id, message.to)
                stored = True
            else:
                stored |= await self._one(message)
        if stored:
            # Also when nothing is new: what an earlier try stored may not be on the volume yet.
            await self._store.durable()
            self._wake()

    async def _pressed(self, pressed: Pressed) -> None:
        if self._rules.allows(pressed.sender) and await self._is_served(pressed):
            await self._press(pressed)
        else:
            self._turn_away(pressed)

    async def _one(self, message: Incoming) -> bool:
        if not (self._rules.allows(message.sender) and usable(message) and await self._is_served(message)):
            self._turn_away(message)
            return False
        if message.edited and self._rules.settings.edited_messages == "sender":
            await self._notify(message, EDITS)
            return True
        update = to_update(message)
        notice = await self._refusal(message, urgent=update.urgent)
        if notice is not None:
            await self._notify(message, notice)
        elif await self._book.receive(self._rules.channel, [update], now_ms()):
            # Only now: a message that can't be stored yet is brought again and again until it is.
            if not self._goes_on(message):
                self._rate.count(message.sender.id)
            self._album = (message.sender.id, message.album)
        return True

    def _goes_on(self, message: Incoming) -> bool:
        """Return whether it is a part of the album of which one came just now: they count as one message."""
        return bool(message.album) and self._album == (message.sender.id, message.album)

    async def _refusal(self, message: Incoming, *, urgent: bool) -> str | None:
        """Return why an allowed sender's message is not taken."""
        self._moment = float(message.sent_at or now_ms())
        if self._rate.retry_after(message.sender.id) is not None and not self._goes_on(message):
            return TOO_OFTEN
        if urgent:
            # Above all /stop, which makes the queue shorter.
            return None
        waiting = await self._book.waiting(self._rules.channel, message.chat_id)
        return TOO_MANY if waiting >= MOST_WAITING else None

    async def _notify(self, message: Incoming, notice: str) -> None:
        """Say once a minute that something was left out."""
        if self._notices.retry_after(message.chat_id) is not None:
            return
        self._notices.count(message.chat_id)
        now = now_ms()
        chat = self._chat(message)
        home = await self._book.enter(chat, now, trusted=self._rules.trusts(chat))
        saying = Saying(f"notice:{cleaned(message.update_id)}", notice)
        await self._book.say(self._rules.channel, message.chat_id, home, saying, now)

    def _chat(self, message: Incoming | Pressed) -> Chat:
        sender = Sender(message.sender.id, cleaned(message.sender.name))
        return self._rules.chat(message.chat_id, sender, private=message.private)

    async def _is_served(self, message: Incoming | Pressed) -> bool:
        """Return whether the chat's principal may act: a chat of one that may not is nobody else's."""
        return await self._principals.is_active(self._chat(message).principal_id)

    def _turn_away(self, message: Incoming | Pressed) -> None:
        self._turned_away += 1
        if self._log.retry_after("") is None:
            self._log.count("")
            logger.warning(
                "A sender who is not allowed was turned away",
                extra={
                    "channel": self._rules.channel,
                    "sender": message.sender.id[:100],
                    "messages": self._turned_away,
                },
            )
            self._turned_away = 0

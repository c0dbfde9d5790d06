"""The part of the Store contract that channels use: what came in, who is in which chat, what goes out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from shared.channel_models import Chat, Delivery, NewUpdate, Saying, Update
from shared.models import NewMessage


class ChannelBook(Protocol):
    """Updates of channels, chats and their conversations, deliveries to chats."""

    async def receive(self, channel: str, updates: Sequence[NewUpdate], now: int) -> int:
        """Store the updates whose id the channel hasn't brought before; returns how many were new."""
        ...

    async def waiting(self, channel: str, chat_id: str) -> int:
        """Return how many updates of the chat wait to be handled."""
        ...

    async def chats_waiting(self, channel: str, *, limit: int) -> list[str]:
        """Return chats with updates that wait their turn, the longest waiting first."""
        ...

    async def next_update(self, channel: str, chat_id: str) -> Update | None:
        """Return the chat's first update that waits its turn."""
        ...

    async def urgent(self, channel: str, *, limit: int) -> list[Update]:
        """Return the updates that don't wait their turn, in order."""
        ...

    async def attach(self, number: int, run_id: str, conversation_id: str) -> None:
        """Note which run is to answer the update, before that run begins."""
        ...

    async def drafted(self, number: int, draft_id: str) -> None:
        """Note the channel's message in which the answer grows."""
        ...

    async def settle(self, number: int, conversation_id: str, saying: Saying | None, now: int) -> None:
        """End the update, forget its body and store what is to be said to its chat, in one transaction.

        An update that was settled before stays as it is. Raises NotFound (the conversation).
        """
        ...

    async def enter(self, chat: Chat, now: int) -> str:
        """Return the conversation the chat is in, made now if there is none; remember who spoke.

        It is named ``<channel>:<chat id>``, with ``.2``, ``.3`` … when that one has been used before.
        """
        ...

    async def begin_anew(self, chat: Chat, now: int) -> str:
        """Put the chat into a new conversation. What the ones before still say reaches the chat as well."""
        ...

    async def join(self, chat: Chat, conversation_id: str, now: int) -> None:
        """Put the chat into a conversation that exists already; raises NotFound."""
        ...

    async def leave(self, channel: str, chat_id: str, conversation_id: str) -> None:
        """Take a conversation away from the chat, which goes back to its newest other one, if any."""
        ...

    async def members(self, channel: str, conversation_id: str) -> list[Chat]:
        """Return the channel's chats that the conversation's messages go to."""
        ...

    async def say(self, channel: str, chat_id: str, conversation_id: str, saying: Saying, now: int) -> None:
        """Store something to be delivered; again is harmless. Raises NotFound (the conversation)."""
        ...

    async def chats_due(self, channel: str, now: int, *, limit: int) -> list[str]:
        """Return chats whose first undelivered message may be tried now, the oldest first."""
        ...

    async def next_delivery(self, channel: str, chat_id: str, now: int) -> Delivery | None:
        """Return the chat's first undelivered message, None if there is none that may be tried now."""
        ...

    async def part_sent(self, number: int, parts: int) -> None:
        """Note that so many parts have reached the chat."""
        ...

    async def put_off(self, number: int, until: int, error: str) -> None:
        """Note a try that failed; the next one is at ``until`` or later."""
        ...

    async def sent(self, number: int, now: int) -> None:
        """End a delivery and forget its text; a message of ``send_message`` counts as handed over."""
        ...

    async def failed(self, number: int, error: str, now: int) -> None:
        """End a delivery for good and forget its text; ``untold`` lists it until ``tell`` did its work."""
        ...

    async def untold(self, channel: str, *, limit: int) -> list[Delivery]:
        """Return failed deliveries that the conversation hasn't been told of (their text is gone)."""
        ...

    async def tell(self, number: int, message: NewMessage, now: int) -> bool:
        """Add a notice of the failure to the conversation; False, and nothing done, while it has a run."""
        ...

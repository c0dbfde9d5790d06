"""What a chat sees while its answer is being made: that somebody is typing, and the text as it grows."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

import anyio

from host.channels.base import Channel, ChannelFault, TryLater, Undeliverable
from host.channels.splitting import split
from shared.values import Event

logger = logging.getLogger("picoclaw.channels")

FIRST_AFTER_S: Final = 1.0
"""An answer that is ready sooner is sent at once, whole."""

TYPING_EVERY_S: Final = 4.5
"""Messengers show typing for about five seconds."""

AFTER_A_FAULT_S: Final = 5.0
GOES_ON: Final = " …"

NoteDraft = Callable[[str], Awaitable[None]]


class Draft:
    """One answer in the making. ``stop`` it before the answer is delivered: no edit comes after that."""

    def __init__(
        self,
        channel: Channel,
        chat_id: str,
        *,
        reply_to: str | None,
        note: NoteDraft,
        draft_id: str | None = None,
    ) -> None:
        self._channel = channel
        self._chat_id = chat_id
        self._reply_to = reply_to
        self._note = note
        self._stopping = anyio.Event()
        self._text = ""
        self._shown = ""
        self.draft_id = draft_id

    async def show(self, events: AsyncIterator[Event]) -> None:
        """Follow a run's events until ``stop``; what the channel can't show now is left out."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._read, events)
            tasks.start_soon(self._type)
            await self._grow()
            tasks.cancel_scope.cancel()

    def stop(self) -> None:
        """Show nothing more; ``show`` returns once the call in flight is over."""
        self._stopping.set()

    async def _read(self, events: AsyncIterator[Event]) -> None:
        async for event in events:
            if event.name == "chunk":
                self._text += event.data["text"]

    async def _type(self) -> None:
        while True:
            try:
                await self._channel.typing(self._chat_id)
            except Undeliverable:
                return
            except ChannelFault as fault:
                await anyio.sleep(_pause(fault))
            except Exception:
                logger.exception("A channel failed to show typing")
                return
            await anyio.sleep(TYPING_EVERY_S)

    async def _grow(self) -> None:
        pause = FIRST_AFTER_S
        while not await self._stopped_within(pause):
            pause = self._channel.edit_every_s
            if not self._channel.streams:
                continue
            try:
                # Never torn: a call that is still on its way could arrive after the whole answer.
                with anyio.CancelScope(shield=True):
                    await self._show_now()
            except ChannelFault as fault:
                pause = max(pause, _pause(fault))
            except Exception:
                logger.exception("A channel failed to show an answer in the making")
                pause = AFTER_A_FAULT_S

    async def _show_now(self) -> None:
        parts = split(self._text, self._channel.longest - len(GOES_ON))
        if not parts or parts[0] == self._shown:
            return
        if self.draft_id is None:
            self.draft_id = await self._channel.send(self._chat_id, parts[0] + GOES_ON, self._reply_to)
            await self._note(self.draft_id)
        else:
            await self._channel.edit(self._chat_id, self.draft_id, parts[0] + GOES_ON)
        self._shown = parts[0]

    async def _stopped_within(self, seconds: float) -> bool:
        with anyio.move_on_after(seconds):
            await self._stopping.wait()
        return self._stopping.is_set()


def _pause(fault: ChannelFault) -> float:
    after = fault.after_s if isinstance(fault, TryLater) else None
    return AFTER_A_FAULT_S if after is None else after

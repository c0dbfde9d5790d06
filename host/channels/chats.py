"""What all chats of a channel share: their work side by side, and sight of an answer that is being made."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

import anyio
from anyio.abc import TaskGroup

from host.channels.base import Channel, ChannelFault, TryLater, Undeliverable
from host.channels.splitting import split
from shared.values import Event

logger = logging.getLogger("picoclaw.channels")

MOST_CHATS: Final = 64
"""Chats that are served at once; the others wait in the store."""

LOOK_EVERY_S: Final = 0.5
"""How often the store is asked for work, in seconds: tool servers and other processes make some as well."""

AFTER_A_FAULT_S: Final = 5.0


class Crowd:
    """Serves the chats that ``find`` names by ``serve``, which works until its chat has nothing more.

    A failure is logged and tried again after a pause; it holds up its own chat alone.
    """

    def __init__(
        self, find: Callable[[int], Awaitable[list[str]]], serve: Callable[[str], Awaitable[None]]
    ) -> None:
        self._find = find
        self._serve = serve
        self._busy: set[str] = set()
        self._woken = anyio.Event()

    def wake(self) -> None:
        """Look for work now."""
        self._woken.set()

    async def run(self) -> None:
        """Serve until cancelled."""
        async with anyio.create_task_group() as tasks:
            while True:
                self._woken = anyio.Event()
                try:
                    await self._start(tasks)
                except Exception:
                    logger.exception("A channel's work could not be looked up")
                with anyio.move_on_after(LOOK_EVERY_S):
                    await self._woken.wait()

    async def _start(self, tasks: TaskGroup) -> None:
        for chat_id in await self._find(2 * MOST_CHATS):
            if len(self._busy) >= MOST_CHATS:
                return
            if chat_id not in self._busy:
                self._busy.add(chat_id)
                tasks.start_soon(self._one, chat_id)

    async def _one(self, chat_id: str) -> None:
        try:
            await self._serve(chat_id)
        except Exception:
            logger.exception("A chat's work failed inside the host", extra={"chat": chat_id})
            await anyio.sleep(AFTER_A_FAULT_S)
        finally:
            self._busy.discard(chat_id)
            self._woken.set()


FIRST_AFTER_S: Final = 1.0
"""An answer that is ready sooner is sent at once, whole."""

TYPING_EVERY_S: Final = 4.5
"""Messengers show typing for about five seconds."""

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

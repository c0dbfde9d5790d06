"""Work for many chats: side by side, but one chat's in order, and never more than so many chats at once."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final

import anyio
from anyio.abc import TaskGroup

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

"""What another server says is bounded before any of it becomes an object."""

from __future__ import annotations

import re
from collections.abc import AsyncIterable, AsyncIterator
from typing import Final

import anyio
import anyio.lowlevel
import anyio.to_thread

from shared import jsons

MESSAGE_LIMIT: Final = 8 * 1024 * 1024
"""Longest message, in bytes."""
MOST_PARTS: Final = 30_000
"""Values, names and brackets of a message's JSON. So many don't fit into a result that is shown whole."""
MOST_IN_A_MINUTE: Final = 2000


class TooMuch(Exception):
    """The server says more than is listened to."""


class Listener:
    """Bounds what one server says before any of it becomes an object."""

    def __init__(self) -> None:
        self._heard = 0
        self._until = 0.0

    async def check(self, message: bytes | bytearray) -> None:
        """Let the others go on first; raises TooMuch."""
        await anyio.lowlevel.checkpoint()
        now = anyio.current_time()
        if now >= self._until:
            self._heard, self._until = 0, now + 60
        self._heard += 1
        if self._heard > MOST_IN_A_MINUTE or len(message) > MESSAGE_LIMIT:
            raise TooMuch("says too much")
        if len(message) <= MOST_PARTS:
            return
        if not await anyio.to_thread.run_sync(jsons.few, bytes(message), MOST_PARTS):
            raise TooMuch("says too many values at once")


async def messages(
    said: AsyncIterable[bytes], end: re.Pattern[bytes] | None, most: int = MESSAGE_LIMIT
) -> AsyncIterator[bytes]:
    """Yield whole messages up to ``end``, then what is left, each within bounds; raises TooMuch."""
    held, listener = bytearray(), Listener()
    async for chunk in said:
        looked = max(len(held) - 3, 0)
        held += chunk
        while end is not None and (found := end.search(held, looked)):
            message, looked = bytes(held[: found.end()]), 0
            del held[: found.end()]
            await listener.check(message)
            yield message
        if len(held) > most:
            raise TooMuch("says too much")
    await listener.check(held)
    yield bytes(held)

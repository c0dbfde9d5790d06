"""What of a server's result the model gets to see: text up to a limit, images, structured results."""

from __future__ import annotations

from typing import Final

import anyio
import anyio.lowlevel
import anyio.to_thread

from shared import jsons

RESULT_LIMIT: Final = 64 * 1024
"""Most text of one result, in bytes of UTF-8."""

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


def cut(text: str) -> str:
    """Return the text, or its beginning and a note of how much there was."""
    # Every character has at least one byte, so most texts needn't be encoded to be judged.
    if len(text) * 4 <= RESULT_LIMIT:
        return text
    data = text.encode("utf-8", "replace")
    if len(data) <= RESULT_LIMIT:
        return text
    kept = data[:RESULT_LIMIT].decode("utf-8", "ignore")
    return f"{kept}\n[cut: the result had {len(data)} bytes, {RESULT_LIMIT} are shown]"

"""A fair share of the event loop for streams that have more to tell than it can take.

What a model has sent is read and parsed in one go as long as there is any, so a thousand fast streams would
keep everything else (a finished run, a GET /health) waiting for each of them. Here they take turns: together
they work for a slice of time, then the loop comes round, then the next few go on. Who falls behind is held up
by the network's own flow control.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from functools import cache
from typing import Final

SLICE_S: Final = 0.005
"""How long streams work before the loop comes round."""

AT_ONCE: Final = 8
"""How many of those who wait go on in one round."""


class Pacer:
    """Turns of the streams of one event loop."""

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._until = 0.0
        self._round_ahead = False

    async def turn(self) -> None:
        """Return when the caller may take its next piece: at once, unless this round's time is used up."""
        if time.monotonic() < self._until:
            return
        loop = asyncio.get_running_loop()
        if not self._round_ahead:
            # The first one of a quiet loop: the time begins now, and the loop's next round ends it.
            self._begin(loop)
            return
        turn = loop.create_future()
        self._waiting.append(turn)
        await turn

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        self._until = time.monotonic() + SLICE_S
        self._round_ahead = True
        loop.call_soon(self._next_round, loop)

    def _next_round(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._waiting:
            self._round_ahead = False
            return
        self._begin(loop)
        for _ in range(min(AT_ONCE, len(self._waiting))):
            turn = self._waiting.popleft()
            if not turn.done():  # its caller was cancelled
                turn.set_result(None)


@cache
def host_pacer() -> Pacer:
    """Return the one of this process, whose event loop is one."""
    return Pacer()

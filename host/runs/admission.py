"""Who may begin: places for so many runs at once, a fair queue in front of them, so many a minute."""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import anyio

from shared.clock import monotonic_ms
from shared.errors import AtCapacity, Draining, TooManyRequests

MOST_WAITING: Final = 1000
"""Requests that may wait at once; more are refused at once."""


@dataclass(eq=False, slots=True)
class _Waiter:
    sender: str
    conversation: str | None
    called: anyio.Event = field(default_factory=anyio.Event)
    has_place: bool = False


class Places:
    """So many places; whoever finds none waits up to ``queue_ms`` milliseconds for one.

    A free place goes to the sender who has not been called for the longest time, among theirs to the
    conversation of which that is true, and then to whoever came first: a flood from one side holds up nobody
    else for long.
    """

    def __init__(self, most: int, queue_ms: int) -> None:
        self._most = most
        self._free = most
        self._queue_ms = queue_ms
        self._waiting: list[_Waiter] = []
        self._calls = 0
        self._last_call: dict[tuple[str, str | None], int] = {}
        self._closed = False

    @property
    def free(self) -> int:
        """How many places are free."""
        return self._free

    @property
    def waiting(self) -> int:
        """How many wait for a place."""
        return len(self._waiting)

    def take_now(self) -> bool:
        """Take a place if one is free."""
        if self._free == 0:
            return False
        self._free -= 1
        return True

    async def take(self, sender: str, conversation: str | None) -> None:
        """Take a place, waiting for it; raises AtCapacity, Draining."""
        if self.take_now():
            return
        if self._queue_ms == 0 or len(self._waiting) >= MOST_WAITING:
            raise self.at_capacity()
        waiter = _Waiter(sender, conversation)
        self._waiting.append(waiter)
        try:
            with anyio.move_on_after(self._queue_ms / 1000):
                await waiter.called.wait()
        except BaseException:
            if waiter.has_place:
                self.give_back()
            raise
        finally:
            self._leave(waiter)
        if not waiter.has_place:
            raise Draining("The host is stopping.", retry_after=5) if self._closed else self.at_capacity()

    def give_back(self) -> None:
        """Free a place, or call the next who waits for one."""
        if not self._waiting or self._closed:
            self._free += 1
            return
        waiter = min(self._waiting, key=self._turn)
        self._waiting.remove(waiter)
        self._calls += 1
        self._last_call[waiter.sender, None] = self._calls
        if waiter.conversation is not None:
            self._last_call[waiter.sender, waiter.conversation] = self._calls
        waiter.has_place = True
        waiter.called.set()

    def close(self) -> None:
        """Send away all who wait: no run begins any more."""
        self._closed = True
        for waiter in self._waiting:
            waiter.called.set()

    def _turn(self, waiter: _Waiter) -> tuple[int, int]:
        # The list is in the order of arrival, and min takes the first of equals.
        sender, conversation = waiter.sender, waiter.conversation
        own = 0 if conversation is None else self._last_call.get((sender, conversation), 0)
        return self._last_call.get((sender, None), 0), own

    def _leave(self, waiter: _Waiter) -> None:
        if waiter in self._waiting:
            self._waiting.remove(waiter)
        if not self._waiting:
            # The crowd is gone; the next one begins even.
            self._last_call.clear()

    def at_capacity(self) -> AtCapacity:
        """Return the refusal of somebody who cannot wait."""
        return AtCapacity(f"The host runs {self._most} conversations at once already.", retry_after=1)


WINDOW_MS: Final = 60_000.0
MOST_KEYS: Final = 10_000
"""Callers that are remembered; beyond that the one that was counted longest ago is forgotten."""


class RateLimit:
    """Counts events by key in the last minute. ``most`` 0 is no limit."""

    def __init__(self, most: int, clock: Callable[[], float] = monotonic_ms) -> None:
        self._most = most
        self._clock = clock
        self._times: OrderedDict[str, deque[float]] = OrderedDict()

    def retry_after(self, key: str) -> int | None:
        """Return the seconds until the key may go on, None if it may now."""
        if self._most == 0:
            return None
        times = self._recent(key)
        if len(times) < self._most:
            return None
        return max(1, math.ceil((times[-self._most] + WINDOW_MS - self._clock()) / 1000))

    def count(self, key: str) -> None:
        """Count an event."""
        if self._most == 0:
            return
        times = self._recent(key)
        times.append(self._clock())
        # More than the limit is never needed, so a flood costs no memory.
        while len(times) > self._most:
            times.popleft()
        self._times[key] = times
        self._times.move_to_end(key)
        if len(self._times) > MOST_KEYS:
            self._times.popitem(last=False)

    def spend(self, key: str, sentence: str) -> None:
        """Count an event; raises TooManyRequests, which says this sentence, for one too many."""
        if self._most == 0:
            return
        wait = self.retry_after(key)
        if wait is not None:
            raise TooManyRequests(sentence, retry_after=wait)
        self.count(key)

    def _recent(self, key: str) -> deque[float]:
        times = self._times.get(key, deque())
        while times and times[0] < self._clock() - WINDOW_MS:
            times.popleft()
        return times

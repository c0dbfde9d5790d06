"""How often something may happen in a minute, for each caller on its own."""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Final

from shared.clock import monotonic_ms
from shared.errors import TooManyRequests

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

"""Who may begin: places for so many runs at once, a fair queue in front of them, so many a minute."""

import math
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Final

import anyio

from shared.clock import monotonic_ms
from shared.errors import AtCapacity, Draining, TooManyRequests
from shared.principals import OPERATOR

MOST_WAITING: Final = 1000
"""Requests that may wait at once; more are refused at once."""


def may_take(whose: str, own: int, free: int, most: int | None = None) -> bool:
    """Return whether a principal that has ``own`` places may take one more of those that are free.

    Without a limit of its own (``most``) it has as many as it leaves to others, the operator all.
    """
    if most is None and whose != OPERATOR:
        return own < free
    return free > 0 and (most is None or own < most)


@dataclass(frozen=True, slots=True)
class Share:
    """For whom a place is: ``who`` from the widest to the narrowest (principal, sender, conversation).

    ``most``: places that the first of them may have at once, None: as many as it leaves free for the others,
    the operator all.
    """

    who: tuple[str, str, str | None]
    most: int | None = None


@dataclass(eq=False, slots=True)
class _Waiter:
    share: Share
    called: anyio.Event = field(default_factory=anyio.Event)
    has_place: bool = False


class Places:
    """So many places; whoever finds none waits up to ``queue_ms`` milliseconds for one.

    A free place goes to the principal who has not been called for the longest time, among theirs to the
    sender of whom that is true, then to such a conversation, and then to whoever came first: a flood from
    one side holds up nobody else for long.
    """

    def __init__(self, most: int, queue_ms: int) -> None:
        self._most = most
        self._free = most
        self._queue_ms = queue_ms
        self._waiting: list[_Waiter] = []
        self._calls = 0
        self._last_call: dict[tuple[str | None, ...], int] = {}
        self._taken = Counter[str]()
        self._most_of: dict[str, int | None] = {}
        self._closed = False

    @property
    def free(self) -> int:
        """How many places are free."""
        return self._free

    @property
    def full(self) -> list[str]:
        """Principals that have all places that they may have, while there are more."""
        return [
            each
            for each, taken in self._taken.items()
            if self._free and not may_take(each, taken, self._free, self._most_of[each])
        ]

    @property
    def waiting(self) -> int:
        """How many wait for a place."""
        return len(self._waiting)

    def take_now(self, share: Share) -> bool:
        """Take a place if one is free."""
        if not may_take(share.who[0], self._taken[share.who[0]], self._free, share.most):
            return False
        self._free -= 1
        self._taken[share.who[0]] += 1
        self._most_of[share.who[0]] = share.most
        return True

    async def take(self, share: Share) -> None:
        """Take a place, waiting for it; raises AtCapacity, Draining."""
        if self.take_now(share):
            return
        if self._queue_ms == 0 or not self._has_room(share):
            raise self.at_capacity(share)
        waiter = _Waiter(share)
        self._waiting.append(waiter)
        try:
            with anyio.move_on_after(self._queue_ms / 1000):
                await waiter.called.wait()
        except BaseException:
            if waiter.has_place:
                self.give_back(share)
            raise
        finally:
            self._leave(waiter)
        if not waiter.has_place:
            closed = Draining("The host is stopping.", retry_after=5)
            raise closed if self._closed else self.at_capacity(share)

    def give_back(self, share: Share) -> None:
        """Free a place, and call the next who waits for one."""
        self._free += 1
        self._taken[share.who[0]] -= 1
        if not self._taken[share.who[0]]:
            del self._taken[share.who[0]]
        waiting = [
            waiter
            for waiter in self._waiting
            if may_take(whose := waiter.share.who[0], self._taken[whose], self._free, waiter.share.most)
        ]
        if waiting and not self._closed:
            self._call(min(waiting, key=self._turn))

    def close(self) -> None:
        """Send away all who wait: no run begins any more."""
        self._closed = True
        for waiter in self._waiting:
            waiter.called.set()

    def _call(self, waiter: _Waiter) -> None:
        self._waiting.remove(waiter)
        self._calls += 1
        for part in _from_widest(waiter.share.who):
            if part[-1] is not None:
                self._last_call[part] = self._calls
        waiter.has_place = self.take_now(waiter.share)
        waiter.called.set()

    def _has_room(self, share: Share) -> bool:
        """Return whether somebody may wait; of a full queue the last of those leaves of whom most wait."""
        if len(self._waiting) < MOST_WAITING:
            return True
        ((most, _),) = Counter(waiter.share.who[0] for waiter in self._waiting).most_common(1)
        if most == share.who[0]:
            return False
        last = next(waiter for waiter in reversed(self._waiting) if waiter.share.who[0] == most)
        self._waiting.remove(last)
        last.called.set()
        return True

    def _turn(self, waiter: _Waiter) -> list[int]:
        # The list is in the order of arrival, and min takes the first of equals.
        return [self._last_call.get(part, 0) for part in _from_widest(waiter.share.who)]

    def _leave(self, waiter: _Waiter) -> None:
        if waiter in self._waiting:
            self._waiting.remove(waiter)
        if not self._waiting:
            # The crowd is gone; the next one begins even.
            self._last_call.clear()

    def at_capacity(self, share: Share) -> AtCapacity:
        """Return the refusal of somebody who cannot wait."""
        whose, most = "The host runs", self._most
        if self._free:
            whose, most = "This principal has", self._taken[share.who[0]]
        return AtCapacity(f"{whose} {most} conversations at once already.", retry_after=1)


def _from_widest(who: tuple[str, str, str | None]) -> list[tuple[str | None, ...]]:
    """Return the principal, the principal's sender, the sender's conversation (None: a new one)."""
    return [who[:length] for length in range(1, len(who) + 1)]


WINDOW_MS: Final = 60_000.0
MOST_KEYS: Final = 10_000
"""Callers that are remembered; beyond that the one that was counted longest ago is forgotten."""


class RateLimit:
    """Counts events by key in the last minute. ``most`` 0 is no limit."""

    def __init__(self, most: int, clock: Callable[[], float] = monotonic_ms) -> None:
        self._most = most
        self._clock = clock
        self._times: OrderedDict[Hashable, deque[float]] = OrderedDict()

    def retry_after(self, key: Hashable, most: int | None = None) -> int | None:
        """Return the seconds until the key may go on, None if it may now; ``most``: a limit of its own."""
        most = self._most if most is None else most
        if most == 0:
            return None
        times = self._recent(key)
        if len(times) < most:
            return None
        return max(1, math.ceil((times[-most] + WINDOW_MS - self._clock()) / 1000))

    def count(self, key: Hashable, most: int | None = None) -> None:
        """Count an event."""
        most = self._most if most is None else most
        if most == 0:
            return
        times = self._recent(key)
        times.append(self._clock())
        # More than the limit is never needed, so a flood costs no memory.
        while len(times) > most:
            times.popleft()
        self._times[key] = times
        self._times.move_to_end(key)
        if len(self._times) > MOST_KEYS:
            self._times.popitem(last=False)

    def spend(self, key: Hashable, sentence: str, most: int | None = None) -> None:
        """Count an event; raises TooManyRequests, which says this sentence, for one too many."""
        if not (self._most if most is None else most):
            return
        wait = self.retry_after(key, most)
        if wait is not None:
            raise TooManyRequests(sentence, retry_after=wait)
        self.count(key, most)

    def _recent(self, key: Hashable) -> deque[float]:
        times = self._times.get(key, deque())
        while times and times[0] < self._clock() - WINDOW_MS:
            times.popleft()
        return times

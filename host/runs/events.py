"""The events of one run: told live to any number of readers, stored in batches, replayed from the store."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import anyio

from shared.values import Event, Run, RunState

EVENTS_EVERY_S: Final = 0.25
"""Live events are stored at least this often, in batches (storage: never one sync per token)."""

WINDOW: Final = 512
"""Stored events that stay in memory for readers close behind; older ones are read from the store."""


@dataclass(slots=True, eq=False)
class EventLog:
    """Numbered events of a running run. One writer (the run), any number of readers.

    ``last_seq``: the number of the newest event, 0 before the first.
    """

    _events: list[Event] = field(default_factory=list)
    _first: int = 1
    _stored: int = 0
    _shown: int = 0
    last_seq: int = 0
    _changed: anyio.Event | None = None
    held: bool = False
    closed: bool = False

    def emit(self, name: str, data: dict[str, Any]) -> Event:
        """Add an event and wake the readers."""
        self.last_seq += 1
        event = Event(self.last_seq, name, data)
        self._events.append(event)
        self._wake()
        return event

    def emit_text(self, text: str) -> None:
        """Add a ``chunk`` event; one that nobody has seen yet takes the text in instead.

        So a run whose events nobody follows has a few long ones, and one with a reader has each at once.
        """
        if not text:
            return
        last = self._events[-1] if self._events else None
        if last is not None and last.name == "chunk" and last.seq > self._shown:
            self._events[-1] = Event(last.seq, "chunk", {"text": last.data["text"] + text})
        else:
            self.emit("chunk", {"text": text})

    def release(self) -> None:
        """Show what was held back."""
        self.held = False
        self._wake()

    def forget(self) -> None:
        """Begin anew, without what was held back."""
        self._events.clear()
        self.last_seq = self._first - 1
        self.release()

    def publish(self, events: Sequence[Event]) -> None:
        """Add the last events, which are in the store already; what was held back is shown with them."""
        self.held = False
        self._events.extend(events)
        self._stored = self.last_seq = self.last_seq + len(events)

    def close(self) -> None:
        """No more events; readers finish."""
        self.closed = True
        self._wake()

    def unsaved(self) -> list[Event]:
        """Return the events that are not in the store yet."""
        self._shown = self.last_seq
        return self._events[max(self._stored + 1 - self._first, 0) :]

    def mark_saved(self, events: Sequence[Event]) -> None:
        """The events are in the store; the oldest ones leave memory."""
        if events:
            self._stored = max(self._stored, events[-1].seq)
        extra = len(self._events) - WINDOW
        if extra > 0:
            extra = min(extra, self._stored - self._first + 1)
            del self._events[:extra]
            self._first += extra

    def after(self, seq: int) -> list[Event] | None:
        """Return the events with a larger number, None if some of them are only in the store."""
        if self.held:
            return []
        if seq + 1 < self._first:
            return None
        self._shown = self.last_seq
        return self._events[seq + 1 - self._first :]

    async def wait(self) -> None:
        """Return when something was added or the log was closed since the last look."""
        if not self.closed:
            self._changed = self._changed or anyio.Event()
            await self._changed.wait()

    def _wake(self) -> None:
        changed, self._changed = self._changed, None
        if changed is not None:
            changed.set()


ReadStored = Callable[[int], Awaitable[Sequence[Event]]]
"""Reads what is stored after an event."""


async def follow(log: EventLog, after: int, read_stored: ReadStored) -> AsyncIterator[Sequence[Event]]:
    """Yield the run's events after ``after``, all that are there at a time, until the log closes.

    Stored ones come first, then live ones.
    """
    # Past the end, too, there is at least the last event to come.
    seq = min(after, log.last_seq - log.closed)
    while True:
        events: Sequence[Event] | None = log.after(seq)
        if events is None:
            events = await read_stored(seq)
        if events:
            seq = events[-1].seq
            yield events
        elif log.closed:
            return
        else:
            await log.wait()


async def replayed(
    run: Run, after: int, read_stored: ReadStored, look_again: Callable[[], Awaitable[Run]]
) -> AsyncIterator[Sequence[Event]]:
    """Yield stored events; those of a run on another host as they are stored there.

    There is always an end: to a reader who is past it, it is said again. ``look_again`` reads the run, and
    raises NotFound once it is deleted.
    """
    seq = after
    while True:
        events = await read_stored(seq)
        if events:
            seq = events[-1].seq
            yield events
            if events[-1].name == "done":
                return
        elif run.state is not RunState.RUNNING:
            if seq == after and run.answer is not None:
                yield [Event(seq, "done", run.answer)]
            return
        else:
            await anyio.sleep(EVENTS_EVERY_S)
            run = await look_again()


async def one_by_one(batches: AsyncIterator[Sequence[Event]]) -> AsyncIterator[Event]:
    """Yield the events of the batches."""
    async for events in batches:
        for event in events:
            yield event

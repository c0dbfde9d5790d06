"""Server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Final

import anyio
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from shared import jsons
from shared.errors import InvalidInput
from shared.values import Event

HEARTBEAT_S: Final = 15.0
RETRY: Final = b"retry: 2000\n\n"
HEARTBEAT: Final = b": still here\n\n"
AT_ONCE: Final = 256
"""Events that go out in one piece."""


def frame(event: Event) -> bytes:
    """Return the event's frame: id, event, data on one line."""
    return b"id: %d\nevent: %b\ndata: %b\n\n" % (event.seq, event.name.encode(), jsons.dump_bytes(event.data))


def last_event_id(request: Request) -> int:
    """Return the number after which the caller wants events; raises InvalidInput."""
    text = request.headers.get("last-event-id", "").strip()
    if not text:
        return 0
    if not (text.isascii() and text.isdigit() and len(text) <= 15):
        raise InvalidInput("Last-Event-ID: must be the id of an event of this run")
    return int(text)


async def until_gone(receive: Receive, scope: anyio.CancelScope) -> None:
    """Cancel a scope when whoever asked is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


class FrameStreamResponse:
    """An ASGI response that sends pieces (whole frames) as they come, and comments while none come.

    A slow reader is waited for; what is to come stays where it comes from. A reader who goes away ends the
    response, not what it was reading; ``on_gone`` is told.
    """

    def __init__(
        self,
        pieces: AsyncIterator[bytes],
        *,
        opening: bytes = b"",
        headers: Mapping[str, str] | None = None,
        on_gone: Callable[[], None] | None = None,
        heartbeat_s: float = HEARTBEAT_S,
    ) -> None:
        self._pieces = pieces
        self._opening = opening
        self._headers = dict(headers or {})
        self._on_gone = on_gone
        self._heartbeat_s = heartbeat_s
        self._sending = False
        self._sent_at = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache, no-transform"),
            (b"x-accel-buffering", b"no"),
            *((name.lower().encode(), value.encode()) for name, value in self._headers.items()),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await self._send(send, self._opening)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._watch, receive, tasks.cancel_scope)
            tasks.start_soon(self._beat, send)
            async for piece in self._pieces:
                await self._send(send, piece)
            tasks.cancel_scope.cancel()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, send: Send, body: bytes) -> None:
        self._sending = True
        await send({"type": "http.response.body", "body": body, "more_body": True})
        self._sending = False
        self._sent_at = anyio.current_time()

    async def _beat(self, send: Send) -> None:
        """Send a comment after each silence; while a slow reader is waited for there is none."""
        while True:
            await anyio.sleep_until(self._sent_at + self._heartbeat_s)
            if self._sending:
                self._sent_at = anyio.current_time()
            elif anyio.current_time() >= self._sent_at + self._heartbeat_s:
                await self._send(send, HEARTBEAT)

    async def _watch(self, receive: Receive, scope: anyio.CancelScope) -> None:
        await until_gone(receive, scope)
        if self._on_gone is not None:
            self._on_gone()


class EventStreamResponse(FrameStreamResponse):
    """The events of a run. What is there goes out in one piece: a fast model costs one write, not many."""

    def __init__(self, batches: AsyncIterator[Sequence[Event]], *, heartbeat_s: float = HEARTBEAT_S) -> None:
        super().__init__(_framed(batches), opening=RETRY, heartbeat_s=heartbeat_s)


async def _framed(batches: AsyncIterator[Sequence[Event]]) -> AsyncIterator[bytes]:
    async for events in batches:
        for start in range(0, len(events), AT_ONCE):
            yield b"".join(map(frame, events[start : start + AT_ONCE]))

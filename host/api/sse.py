"""Server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Final

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from shared import jsons
from shared.errors import InvalidInput
from shared.models import Event

HEARTBEAT_S: Final = 15.0
RETRY: Final = b"retry: 2000\n\n"
HEARTBEAT: Final = b": still here\n\n"
BACKLOG: Final = 64
"""Frames that wait for a slow reader before the sender waits too; the events themselves stay in the log."""


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


class FrameStreamResponse:
    """An ASGI response that sends frames as they come, and comments while none come.

    A reader who goes away ends the response, not what it was reading; ``on_gone`` is told.
    """

    def __init__(
        self,
        frames: AsyncIterator[bytes],
        *,
        opening: bytes = b"",
        headers: Mapping[str, str] | None = None,
        on_gone: Callable[[], None] | None = None,
        heartbeat_s: float = HEARTBEAT_S,
    ) -> None:
        self._frames = frames
        self._opening = opening
        self._headers = dict(headers or {})
        self._on_gone = on_gone
        self._heartbeat_s = heartbeat_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache, no-transform"),
            (b"x-accel-buffering", b"no"),
            *((name.lower().encode(), value.encode()) for name, value in self._headers.items()),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": self._opening, "more_body": True})
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._watch, receive, tasks.cancel_scope)
            await self._send_all(send)
            tasks.cancel_scope.cancel()

    async def _send_all(self, send: Send) -> None:
        to_send, frames = anyio.create_memory_object_stream[bytes](BACKLOG)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._produce, to_send)
            async with frames:
                while True:
                    chunk = HEARTBEAT
                    with anyio.move_on_after(self._heartbeat_s):
                        try:
                            chunk = await frames.receive()
                        except anyio.EndOfStream:
                            break
                    # What waits already goes out in one piece: a fast model costs one write, not hundreds.
                    chunk += b"".join(_waiting(frames))
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _produce(self, to_send: MemoryObjectSendStream[bytes]) -> None:
        async with to_send:
            async for piece in self._frames:
                await to_send.send(piece)

    async def _watch(self, receive: Receive, scope: anyio.CancelScope) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        if self._on_gone is not None:
            self._on_gone()
        scope.cancel()


class EventStreamResponse(FrameStreamResponse):
    """The events of a run as they come."""

    def __init__(self, events: AsyncIterator[Event], *, heartbeat_s: float = HEARTBEAT_S) -> None:
        super().__init__(_framed(events), opening=RETRY, heartbeat_s=heartbeat_s)


async def _framed(events: AsyncIterator[Event]) -> AsyncIterator[bytes]:
    async for event in events:
        yield frame(event)


def _waiting(frames: MemoryObjectReceiveStream[bytes]) -> list[bytes]:
    waiting: list[bytes] = []
    while True:
        try:
            waiting.append(frames.receive_nowait())
        except (anyio.WouldBlock, anyio.EndOfStream):
            return waiting

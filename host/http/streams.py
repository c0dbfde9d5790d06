"""Bodies that are streams: server-sent events, and uploads that a thread reads past the event loop.

Events: https://html.spec.whatwg.org/multipage/server-sent-events.html. A thread reads in large pieces while
bytes come fast.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final

import anyio
import httptools
from starlette.requests import Request
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from shared import jsons
from shared.clock import monotonic_ms
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


LEND: Final = "lend"
"""The key in a PUT's scope of what lends its body: ``LendingProtocol.lend`` for this request."""
PIECE: Final = 1 << 20
BURST: Final = 16 * PIECE
"""Bytes that are read before the event loop looks at the connection again."""
BURST_MS: Final = 500.0
GAP_S: Final = 0.01
"""How long a thread waits for the next bytes; longer waits are the event loop's."""


class LentBody:
    """What is ``left`` of a body, of which ``most`` bytes may be read."""

    def __init__(self, source: socket.socket, left: int) -> None:
        self.left = left
        self.most = min(left, BURST)
        self._source = source
        source.settimeout(GAP_S)

    def pieces(self) -> Iterator[memoryview]:
        """Yield what comes without a pause, in a thread; how a connection ends is seen by its owner."""
        buffer, end = memoryview(bytearray(PIECE)), self.left - self.most
        until = monotonic_ms() + BURST_MS
        with contextlib.suppress(OSError):
            while self.left > end and monotonic_ms() < until:
                came = self._source.recv_into(buffer[: self.left - end])
                if not came:
                    return
                self.left -= came
                yield buffer[:came]


class LendingProtocol(HttpToolsProtocol):
    """uvicorn's protocol, which may lend a body whose length was declared."""

    def __init__(self, **parts: Any) -> None:
        super().__init__(**parts)
        self._came = 0
        """Bytes of the present body."""
        self._whole = 0
        """Its length, once it was lent: the parser, a new one, goes on behind it."""

    def on_headers_complete(self) -> None:
        """Begin a request (the parser's call)."""
        super().on_headers_complete()
        self._came = 0
        if self.scope["method"] == "PUT" and self.scheme == "http":
            self.scope[LEND] = partial(self.lend, self.cycle)  # type: ignore[typeddict-unknown-key]

    def on_body(self, body: bytes) -> None:
        """Take a piece of a body (the parser's call)."""
        self._came += len(body)
        super().on_body(body)

    def feed(self, data: memoryview) -> memoryview:
        """Take what belongs to a lent body, and return what follows."""
        piece = data[: self._whole - self._came] if self._whole else data[:0]
        if piece:
            self.on_body(bytes(piece))
            self._end_lent()
        return data[len(piece) :]

    @contextlib.contextmanager
    def lend(self, cycle: RequestResponseCycle) -> Iterator[LentBody | None]:
        """Lend the rest of a body that comes faster than it is taken, so that reading has paused."""
        length = self._length_of(cycle)
        if not length or not self.flow.read_paused or cycle.body or self.transport.is_closing():
            yield None
            return
        if not self._whole:
            self._whole, self.parser = length, httptools.HttpRequestParser(self)
        with self.transport.get_extra_info("socket").dup() as source:
            body = LentBody(source, length - self._came)
            try:
                yield body
            finally:
                self._came = length - body.left
                self._end_lent()

    def _length_of(self, cycle: RequestResponseCycle) -> int:
        if cycle is not self.cycle or not cycle.more_body:
            return 0
        headers = dict(cycle.scope["headers"])
        return self._whole or int(headers.get(b"content-length", 0))

    def _end_lent(self) -> None:
        if self._came == self._whole and self.parser is not None:
            self._whole = 0
            self.on_message_complete()

"""Bodies that a thread reads: past the event loop and the parser, in large pieces, while bytes come fast."""

import contextlib
import socket
from collections.abc import Iterator
from functools import partial
from typing import Any, Final

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from shared.clock import monotonic_ms

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
        piece = data[: self._whole - self._came]
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

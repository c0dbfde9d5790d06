"""Connections before and beside their requests: what they may send, how long keep silent, how many there are.

uvicorn's protocol with bounds. A refusal that no application sees is answered here, shaped as all errors.
"""

from __future__ import annotations

import asyncio
import logging
import resource
from typing import Any, Final

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from host.http.bodies import CAME, LendingProtocol
from host.telemetry import Metrics
from shared import jsons
from shared.clock import monotonic_ms
from shared.ids import REQUEST, new_id

logger = logging.getLogger("picoclaw.http")

LARGEST_HEAD: Final = 64 * 1024
"""Bytes of a request's head, and of what may stand between two pieces of a body (sizes, trailers)."""
MOST_HEADERS: Final = 100
ONCE: Final = (b"host", b"authorization", b"content-type", b"idempotency-key", b"last-event-id")
"""Headers of which one counts: of two, others may read another one than this host."""
MOST_HELD: Final = 32 * 1024 * 1024
"""Bytes of all heads that aren't whole."""
MOST_WAITING_REQUESTS: Final = 32
"""Requests that may wait on one connection for the answer to an earlier one."""

HEAD_S: Final = 10.0
"""Time for a head; as long a connection may wait with its first request."""
LEFTOVER_S: Final = 10.0
"""Time for the rest of a body that was answered before it was whole: closed at once, some clients would not
read the answer (RFC 9112, section 9.6)."""
STALLED_S: Final = 30.0
"""How long a reader may take nothing of what waits for it."""

REASONS: Final = {
    "full": "there are too many; the one that kept silent longest makes room",
    "idle": "no request came",
    "slow_head": "the head of a request did not come in time",
    "slow_body": "the rest of an answered body did not come in time",
    "slow_reader": "the answer is not taken",
    "wrong": "what came is no request that is taken here",
}
MOST_CONNECTIONS: Final = 10_000
MOST_DESCRIPTORS: Final = 1 << 20
"""More is of no use, and some programs close all that they might have."""
BACKLOG: Final = 2048
LOG_EVERY_MS: Final = 60_000.0


def most_connections() -> int:
    """Raise the soft limit of open files to the hard one (setrlimit(2)), and return how many connections
    there may be: half of it, the rest is for store, sandbox and model.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MOST_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return min(wanted // 2, MOST_CONNECTIONS)


class Connections:
    """All connections of a host.

    ``waiting`` are those whose peer is to speak, the one that spoke longest ago first.
    """

    def __init__(self, most: int, metrics: Metrics) -> None:
        self._most = most
        self._metrics = metrics
        self._held = 0
        self._log_from_ms: dict[str, float] = {}
        self.waiting: dict[Connection, None] = {}

    @property
    def backlog(self) -> int:
        """How many may wait to be taken in: the loop takes in all of them before it closes one."""
        return min(self._most // 2, BACKLOG)

    def opened(self, connection: Connection) -> None:
        """Take a connection in; the one that waits longest makes room."""
        self._metrics.connections += 1
        self.waiting[connection] = None
        if self._metrics.connections > self._most:
            next(iter(self.waiting)).drop("full")

    def hold(self, more: int) -> None:
        """Account for heads that aren't whole; above the bound the one that keeps silent longest goes."""
        self._held += more
        if more > 0 and self._held > MOST_HELD and self.waiting:
            next(iter(self.waiting)).drop("full")

    def ended(self, connection: Connection) -> None:
        """Forget a connection."""
        self._metrics.connections -= 1
        self.waiting.pop(connection, None)

    def count(self, reason: str) -> None:
        """Count a connection that the host ends, and say so once a minute."""
        cut = self._metrics.connections_cut
        cut[reason] += 1
        now = monotonic_ms()
        if now < self._log_from_ms.get(reason, 0.0):
            return
        self._log_from_ms[reason] = now + LOG_EVERY_MS
        level = logging.WARNING if reason == "full" else logging.INFO
        fields = {"open": self._metrics.connections, "most": self._most, "since_start": dict(cut)}
        logger.log(level, "Connections are ended: %s", REASONS[reason], extra=fields)


class _Refused(Exception):
    """The request is wrong in a way that its parser doesn't see."""


class Connection(LendingProtocol):
    """One connection. uvicorn's timer between two requests serves for all waits, one at a time."""

    def __init__(self, book: Connections, **parts: Any) -> None:
        super().__init__(**parts)
        self._book = book
        self._in_head = False
        self._held = 0
        self._unanswered = 0
        """Bytes since the last thing that was whole: a head, a piece of a body."""
        self._refusal = (400, "invalid_request", "This is not a valid HTTP/1.1 request.")
        self._stalled: asyncio.TimerHandle | None = None
        self._left_to_send = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take in a connection (asyncio's call)."""
        super().connection_made(transport)
        self._book.opened(self)
        self._wait(HEAD_S, "idle")

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it (asyncio's call)."""
        self._book.ended(self)
        self._hold(0)
        self._unset_keepalive_if_required()
        self.resume_writing()
        super().connection_lost(exc)

    def eof_received(self) -> None:
        """The peer will send nothing more: it is gone for us, also if it doesn't read (asyncio's call)."""
        self._end()

    def data_received(self, data: bytes) -> None:
        """Parse what came, in pieces that can't hold much more than a head may have (asyncio's call)."""
        if self.transport.is_closing():
            return
        try:
            rest = self.feed(memoryview(data)) if self._whole else memoryview(data)
            while rest and self.parser is not None:
                room = LARGEST_HEAD - self._unanswered
                if room <= 0:
                    raise self._oversized()
                piece, rest = rest[:room], rest[room:]
                self._unanswered += len(piece)
                self.parser.feed_data(piece)
                if self._in_head:
                    self._hold(self._unanswered)
        except (httptools.HttpParserError, _Refused):
            self._refuse(*self._refusal)
        except httptools.HttpParserUpgrade:
            # Answered as what it is without the upgrade; what follows could be anything.
            self.cycle.keep_alive = False

    def on_message_begin(self) -> None:
        """Begin a request (the parser's call)."""
        super().on_message_begin()
        self._in_head = True
        if self.cycle is None or self.cycle.response_complete:
            self._wait(HEAD_S, "slow_head")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; what follows a body is none, nobody has checked it (the parser's call)."""
        if not self._in_head:
            return
        super().on_header(name, value)
        if len(self.headers) > MOST_HEADERS:
            raise self._oversized()

    def on_headers_complete(self) -> None:
        """Begin to answer (the parser's call)."""
        if len(self.pipeline) >= MOST_WAITING_REQUESTS:
            raise self._wrong("Too many requests before the first was answered.")
        self._check_head()
        self._in_head, self._unanswered = False, 0
        if self._held:
            self._hold(0)
        self._unset_keepalive_if_required()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a piece of a body (the parser's call)."""
        self._unanswered = 0
        # The peer spoke: others that wait are older now.
        if self._book.waiting.pop(self, self) is None:
            self._book.waiting[self] = None
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End a request (the parser's call)."""
        self._unanswered = 0
        self.cycle.more_body = False
        self.cycle.scope[CAME] = True  # type: ignore[typeddict-unknown-key]
        self._book.waiting.pop(self, None)
        if self.cycle.response_complete:
            self._between_requests()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Wait for the next request (uvicorn's call)."""
        answered, next_one = self.cycle, bool(self.pipeline)
        if answered.response_complete:  # else it is a later request, whose body is still to be read
            answered.body = bytearray()
        super().on_response_complete()
        if self.transport.is_closing():
            self._end()
        elif not next_one and answered.more_body:
            # With "Expect: 100-continue" the peer may leave the body out: what comes next could be either.
            self._wait(0 if self.expect_100_continue else LEFTOVER_S, "slow_body")
        elif not next_one:
            self._between_requests()

    def pause_writing(self) -> None:
        """Begin to watch a reader who takes less than there is (asyncio's call)."""
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        """The reader has caught up (asyncio's call)."""
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def timeout_keep_alive_handler(self) -> None:
        """Close between two requests (uvicorn's timer)."""
        self._end()

    def drop(self, reason: str) -> None:
        """End the connection at once."""
        self._book.waiting.pop(self, None)
        self._book.count(reason)
        self.transport.abort()

    def _check_head(self) -> None:
        """Refuse what proxies may read in another way (RFC 9112, sections 2.3, 3.2 and 6)."""
        version = self.parser.get_http_version()
        if version not in ("1.0", "1.1"):
            raise self._wrong("Only HTTP/1.1 and HTTP/1.0 are spoken here.")
        names = [name for name, _ in self.headers]
        if b"host" not in names and version == "1.1":
            raise self._wrong("Host: must be there once.")
        if len(set(names)) < len(names) and (twice := next((n for n in ONCE if names.count(n) > 1), None)):
            raise self._wrong(f"{twice.decode().title()}: must be there once.")
        codings = [value.strip().lower() for name, value in self.headers if name == b"transfer-encoding"]
        if codings and (codings != [b"chunked"] or version == "1.0"):
            raise self._wrong("Transfer-Encoding: only chunked is taken, with HTTP/1.1.")
        if self.parser.should_upgrade() and (codings or b"content-length" in names):
            raise self._wrong("Upgrade: a request with a body can't be upgraded; send it without.")

    def _wrong(self, sentence: str) -> _Refused:
        self._refusal = (400, "invalid_request", sentence)
        return _Refused()

    def _oversized(self) -> _Refused:
        if not self._in_head and self.cycle is not None:
            return self._wrong("body: has too much between its chunks")
        sentence = f"The head has more than {MOST_HEADERS} headers or {LARGEST_HEAD} bytes."
        self._refusal = (431, "head_too_large", sentence)
        return _Refused()

    def _hold(self, size: int) -> None:
        """Account for the bytes of a head that isn't whole."""
        more, self._held = size - self._held, size
        self._book.hold(more)

    def _between_requests(self) -> None:
        self._book.waiting[self] = None
        if self._in_head:
            self._wait(HEAD_S, "slow_head")
        else:
            self._unset_keepalive_if_required()
            handle = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)
            self.timeout_keep_alive_task = handle

    def _wait(self, seconds: float, reason: str) -> None:
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self._late, reason)

    def _late(self, reason: str) -> None:
        if reason == "slow_head":
            self._refuse(408, "timeout", f"The head was not whole within {HEAD_S:g} s.", reason)
        elif not self.transport.is_closing():
            self._book.count(reason)
            self._end()

    def _refuse(self, status: int, code: str, sentence: str, reason: str = "wrong") -> None:
        """Answer what no application will see, unless an earlier answer is to come, and close."""
        if self.transport.is_closing():
            return
        self._book.count(reason)
        last = self.cycle
        earlier = last is not None and not last.response_complete and not last.more_body
        cut = last is not None and last.response_started and not last.response_complete
        if not (earlier or cut or self.pipeline):
            self.transport.write(_answer(status, code, sentence))
        self._end()

    def _end(self) -> None:
        """Close; what waits to be sent is sent first, to a reader who takes it."""
        self.transport.close()
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self._stalled is None:
            self._watch_reader()

    def _watch_reader(self) -> None:
        self._left_to_send = self.transport.get_write_buffer_size()
        if self._left_to_send:
            self._stalled = self.loop.call_later(STALLED_S, self._check_reader)

    def _check_reader(self) -> None:
        before, self._stalled = self._left_to_send, None
        if self.transport.get_write_buffer_size() >= before:
            self.drop("slow_reader")
        else:
            self._watch_reader()


def _answer(status: int, code: str, sentence: str) -> bytes:
    request_id = new_id(REQUEST)
    body = jsons.dump_bytes({"error": sentence, "code": code, "request_id": request_id})
    head = (
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
        f"x-request-id: {request_id}\r\nconnection: close\r\n\r\n"
    )
    return STATUS_LINE[status] + head.encode() + body

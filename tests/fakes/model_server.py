"""A Messages API server on loopback for tests and benchmarks: real HTTP, scripted answers, next to no cost.

    python -m tests.fakes.model_server --port 0     prints {"url": ..., "port": ...} as one line of JSON
    async with fake_model() as server: ...          in the caller's event loop

``POST /v1/messages``, ``POST /v1/messages/count_tokens``; ``POST /_script`` queues a step or a list of steps,
``GET /_requests`` shows what came in (newest last), ``DELETE /_requests`` forgets requests, script and cache.
What a step may say: ``model_script``.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, cast

import httptools
import uvloop

from shared.jsons import dump_bytes, dumps, loads
from tests.fakes.model_answer import answer_of, error_type, reply_to
from tests.fakes.model_cache import PromptCache
from tests.fakes.model_script import Script, Step, refused
from tests.fakes.model_strict import refuse
from tests.fakes.protocol import InvalidRequest, checked, error_body, input_tokens

_SLOW: Final = ("hang", "delay_ms", "delta_delay_ms", "hang_after_deltas")
_STREAM_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n"
    b"request-id: req_fake\r\ntransfer-encoding: chunked\r\n\r\n"
)


@dataclass(frozen=True, slots=True)
class Recorded:
    """A request as it came in; header names are lower case."""

    method: str
    path: str
    headers: dict[str, str]
    raw: bytes

    @property
    def body(self) -> Any:
        """The parsed JSON body, None without one."""
        return loads(self.raw) if self.raw else None


@dataclass(slots=True)
class FakeModel:
    """The server's state, shared by its connections: script, cache, requests, who is connected.

    ``refusals`` are what no client of the API may send (``model_strict``); no test expects one.
    """

    url: str = ""
    strict: bool = True
    script: Script = field(default_factory=Script)
    cache: PromptCache = field(default_factory=PromptCache)
    refusals: list[str] = field(default_factory=list)
    requests: deque[Recorded] = field(default_factory=lambda: deque(maxlen=500))
    connections: set[_Connection] = field(default_factory=set)
    answering: int = 0
    quiet: asyncio.Event = field(default_factory=asyncio.Event)

    def queue(self, *steps: Step) -> None:
        """Queue steps for requests that bring no directive of their own."""
        self.script.add(*steps)

    def clear(self) -> None:
        """Forget requests, script and cache."""
        self.script.clear()
        self.cache.entries.clear()
        self.requests.clear()

    async def idle(self) -> None:
        """Wait until no request is being answered."""
        while self.answering:
            self.quiet.clear()
            await self.quiet.wait()


class _Connection(asyncio.Protocol):
    """One HTTP/1.1 connection with keep-alive; requests on it are answered one after another."""

    def __init__(self, server: FakeModel) -> None:
        self.server = server
        self.parser = httptools.HttpRequestParser(self)
        self.path = ""
        self.headers: dict[str, str] = {}
        self.chunks: list[bytes] = []
        self.answer: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are not subclasses of asyncio's
        self.server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.server.connections.discard(self)
        if self.answer is not None:
            self.answer.cancel()

    def data_received(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self._json(400, error_body("invalid_request_error", "not HTTP/1.1", "req_fake"))
            self.transport.close()

    def on_message_begin(self) -> None:
        self.path, self.headers, self.chunks = "", {}, []

    def on_url(self, url: bytes) -> None:
        self.path += url.decode("latin-1")

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self.chunks.append(body)

    def on_message_complete(self) -> None:
        method = self.parser.get_method().decode()
        path = self.path.partition("?")[0]
        request = Recorded(method, path, self.headers, b"".join(self.chunks))
        if not path.startswith("/_"):
            self.server.requests.append(request)
        route = _ROUTES.get((method, path))
        if route is None:
            self._json(404, error_body("not_found_error", "Not found", "req_fake"))
            return
        try:
            route(self, request)
        except (InvalidRequest, ValueError, TypeError) as bad:
            self._json(400, error_body("invalid_request_error", str(bad), "req_fake"))

    def messages(self, request: Recorded) -> None:
        body = checked(request.body)
        if self.server.strict:
            self._refuse(body, len(request.raw))
        step = refused(body) or self.server.script.next(body)
        if any(step.get(name) is not None for name in _SLOW):
            self.server.answering += 1
            self.answer = asyncio.get_running_loop().create_task(self._slowly(step, body))
            self.answer.add_done_callback(self._answered)
        else:
            self._at_once(step, body)

    def _refuse(self, body: dict[str, Any], size: int) -> None:
        try:
            refuse(body, size)
        except InvalidRequest as bad:
            self.server.refusals.append(str(bad))
            raise

    def count_tokens(self, request: Recorded) -> None:
        self._json(200, {"input_tokens": input_tokens(checked(request.body, counting=True))})

    def set_script(self, request: Recorded) -> None:
        steps = request.body
        self.server.queue(*(steps if isinstance(steps, list) else [steps]))
        self._json(200, {"queued": len(self.server.script.queue)})

    def show_requests(self, request: Recorded) -> None:
        seen = [
            {"method": one.method, "path": one.path, "headers": one.headers, "body": one.body}
            for one in self.server.requests
        ]
        self._json(200, {"requests": seen, "refusals": self.server.refusals})

    def forget(self, request: Recorded) -> None:
        self.server.clear()
        self._json(200, {"requests": []})

    def _answered(self, task: asyncio.Task[None]) -> None:
        self.server.answering -= 1
        self.server.quiet.set()

    def _at_once(self, step: Step, body: dict[str, Any]) -> None:
        if "status" in step:
            self._fail(step)
            return
        if "raw" in step:
            self._send(
                200, {"content-type": step.get("content_type", "text/event-stream")}, step["raw"].encode()
            )
            return
        message = reply_to(step, body, self.server.cache)
        if not body.get("stream"):
            self._json(200, message.body())
            return
        answer = answer_of(step, message)
        self.transport.write(_STREAM_HEAD + _chunk(b"".join(frame.data for frame in answer.frames)))
        self._end(answer.ending)

    async def _slowly(self, step: Step, body: dict[str, Any]) -> None:
        await asyncio.sleep(step.get("delay_ms", 0) / 1000)
        if step.get("hang"):
            await asyncio.Event().wait()
        if "status" in step or not body.get("stream"):
            self._at_once(step, body)
            return
        answer = answer_of(step, reply_to(step, body, self.server.cache))
        self.transport.write(_STREAM_HEAD)
        for frame in answer.frames:
            if frame.delta:
                await asyncio.sleep(step.get("delta_delay_ms", 0) / 1000)
            self.transport.write(_chunk(frame.data))
        if answer.ending == "hang":
            await asyncio.Event().wait()
        self._end(answer.ending)

    def _end(self, ending: str) -> None:
        if ending == "drop":
            self.transport.close()
        else:
            self.transport.write(b"0\r\n\r\n")

    def _fail(self, step: Step) -> None:
        extra = {**step.get("headers", {})}
        if "retry_after" in step:
            extra["retry-after"] = str(step["retry_after"])
        sentence = step.get("message", "The fake model was told to fail.")
        body = step.get("body") or error_body(error_type(step), sentence, "req_fake")
        self._json(step["status"], body, extra)

    def _json(self, status: int, body: dict[str, Any], extra: dict[str, str] | None = None) -> None:
        head = {"content-type": "application/json", "request-id": "req_fake", **(extra or {})}
        self._send(status, head, dump_bytes(body))

    def _send(self, status: int, head: dict[str, str], content: bytes) -> None:
        lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
        start = f"HTTP/1.1 {status} Status\r\n{lines}content-length: {len(content)}\r\n\r\n"
        self.transport.write(start.encode() + content)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


_ROUTES: Final[dict[tuple[str, str], Callable[[_Connection, Recorded], None]]] = {
    ("POST", "/v1/messages"): _Connection.messages,
    ("POST", "/v1/messages/count_tokens"): _Connection.count_tokens,
    ("POST", "/_script"): _Connection.set_script,
    ("GET", "/_requests"): _Connection.show_requests,
    ("DELETE", "/_requests"): _Connection.forget,
}


@asynccontextmanager
async def fake_model(
    port: int = 0, *, minimum_cached_tokens: int = 1024, strict: bool = True
) -> AsyncIterator[FakeModel]:
    """Serve on loopback while the block runs; ``port`` 0 takes a free one, not ``strict`` any client."""
    state = FakeModel(cache=PromptCache(minimum_cached_tokens), strict=strict)
    listener = await asyncio.get_running_loop().create_server(lambda: _Connection(state), "127.0.0.1", port)
    state.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    try:
        yield state
    finally:
        listener.close()
        for connection in list(state.connections):
            connection.transport.abort()
        await state.idle()
        await listener.wait_closed()


async def _serve(port: int, minimum: int, *, strict: bool) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with fake_model(port, minimum_cached_tokens=minimum, strict=strict) as server:
        print(dumps({"url": server.url, "port": int(server.url.rpartition(":")[2])}), flush=True)
        await stop.wait()


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--port", type=int, default=0)
    options.add_argument("--minimum-cached-tokens", type=int, default=1024)
    options.add_argument("--any-client", action="store_true")
    chosen = options.parse_args()
    uvloop.run(_serve(chosen.port, chosen.minimum_cached_tokens, strict=not chosen.any_client))


if __name__ == "__main__":
    main()

"""The application in the test's own process, and a client of it that needs no socket: for `make quick`."""

from __future__ import annotations

import queue
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Final
from urllib.parse import unquote

import anyio
import httpx2
from anyio.from_thread import BlockingPortal, start_blocking_portal
from starlette.types import ASGIApp, Message

from host.app import app, open_host
from host.models.process import ModelProcess
from shared.settings import load

SECONDS: Final = 60


@contextmanager
def in_process(environment: Mapping[str, str]) -> Iterator[httpx2.BaseTransport]:
    """Open a host of these settings beside the test, in a thread of its own; yield the way to it."""
    with (
        start_blocking_portal("asyncio", {"use_uvloop": True}) as portal,
        portal.wrap_async_context_manager(_opened(environment)) as opened,
    ):
        yield InProcess(portal, opened)


@asynccontextmanager
async def _opened(environment: Mapping[str, str]) -> AsyncIterator[ASGIApp]:
    async with ModelProcess() as process, open_host(load(dict(environment)), lambda _: None, process) as host:
        yield app(host)


class InProcess(httpx2.BaseTransport):
    """Hands requests to the application, and its answer on as it comes."""

    def __init__(self, portal: BlockingPortal, app: ASGIApp) -> None:
        self._portal = portal
        self._app = app

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        exchange = Exchange(self._portal, request)
        self._portal.start_task_soon(exchange.run, self._app)
        start = exchange.next()
        return httpx2.Response(start["status"], headers=start["headers"], stream=exchange)


class Exchange(httpx2.SyncByteStream):
    """One request and its answer, which is read in the test's thread."""

    def __init__(self, portal: BlockingPortal, request: httpx2.Request) -> None:
        self._portal = portal
        self._request = request
        self._body = request.read()
        self._asked = False
        self._answer: queue.SimpleQueue[Message | BaseException] = queue.SimpleQueue()
        self._left = anyio.Event()

    async def run(self, app: ASGIApp) -> None:
        url = self._request.url
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": self._request.method,
            "scheme": "http",
            "path": unquote(url.path),
            "raw_path": url.raw_path.partition(b"?")[0],
            "query_string": url.query,
            "root_path": "",
            "headers": [(name.lower(), value) for name, value in self._request.headers.raw],
            "client": ("127.0.0.1", 1),
            "server": (url.host, url.port),
        }
        try:
            await app(scope, self._receive, self._send)
        except BaseException as error:
            self._answer.put(error)
            raise

    async def _receive(self) -> Message:
        if self._asked:
            await self._left.wait()
            return {"type": "http.disconnect"}
        self._asked = True
        return {"type": "http.request", "body": self._body, "more_body": False}

    async def _send(self, message: Message) -> None:
        self._answer.put(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self._left.set()

    def next(self) -> Message:
        message = self._answer.get(timeout=SECONDS)
        if isinstance(message, BaseException):
            raise message
        return message

    def __iter__(self) -> Iterator[bytes]:
        more = True
        while more:
            message = self.next()
            more = message.get("more_body", False)
            yield message.get("body", b"")

    def close(self) -> None:
        self._portal.call(self._left.set)

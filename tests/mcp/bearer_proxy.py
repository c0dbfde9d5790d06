"""A proxy that adds a bearer token, for programs that can't be told one. Everything else stays as it came."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
import uvicorn
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tests.running import until


class BearerProxy:
    """Forwards each request whole, with the token added."""

    def __init__(self, url: str, token: str) -> None:
        self._token = token
        self._http = httpx2.AsyncClient(base_url=url, trust_env=False, timeout=60)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            async with self._http:
                for step in ("startup", "shutdown"):
                    await receive()
                    await send({"type": f"lifespan.{step}.complete"})
            return
        request = Request(scope, receive)
        given = [(name, value.strip()) for name, value in request.headers.raw]
        headers = [*given, (b"authorization", f"Bearer {self._token}".encode())]
        answer = await self._http.request(
            request.method, request.url.path, content=await request.body(), headers=headers
        )
        kept = {name: value for name, value in answer.headers.items() if name != "content-length"}
        await Response(answer.content, answer.status_code, kept)(scope, receive, send)


@contextmanager
def bearer_proxy(url: str, token: str) -> Iterator[str]:
    """Yield the address of a proxy in front of ``url``."""
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(BearerProxy(url, token), log_level="critical", lifespan="on", ws="none")
    )
    thread = threading.Thread(target=server.run, args=([bound],))
    thread.start()
    try:
        until(lambda: server.started)
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        bound.close()

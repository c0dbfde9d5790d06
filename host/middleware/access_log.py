"""One log line per request: who, what, how it ended, how long. Never a body, never a query string."""

from __future__ import annotations

import logging
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from host.metrics import Metrics
from host.middleware.bearer import OPEN_PATHS
from shared.clock import monotonic_ms

logger = logging.getLogger("picoclaw.access")


METHODS: Final = frozenset({"GET", "POST", "PUT", "DELETE"})


class AccessLogMiddleware:
    """Logs and counts each HTTP request when its answer is complete."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = monotonic_ms()
        status = 0
        size = 0

        async def observe(message: Message) -> None:
            nonlocal status, size
            if message["type"] == "http.response.start":
                status = message["status"]
            else:
                size += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receive, observe)
        finally:
            took_ms = monotonic_ms() - started
            # What callers invent doesn't become a label.
            method = scope["method"] if scope["method"] in METHODS else "other"
            self._metrics.requests[method, status] += 1
            self._metrics.request_seconds.add(took_ms / 1000)
            client = scope.get("client")
            logger.log(
                # Machines ask for these every few seconds.
                logging.DEBUG if scope["path"] in OPEN_PATHS else logging.INFO,
                "request",
                extra={
                    "method": scope["method"],
                    "path": scope["path"],
                    "status": status,
                    "bytes": size,
                    "duration_ms": round(took_ms, 2),
                    "client": client[0] if client else None,
                },
            )

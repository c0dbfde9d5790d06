"""Gives every request its id, and every answer the id and the build."""

from __future__ import annotations

import re
from typing import Final

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.ids import REQUEST, new_id
from shared.logging import request_id as request_id_var

ACCEPTED: Final = re.compile(rb"[A-Za-z0-9._-]{1,128}")


class RequestIdMiddleware:
    """Takes the caller's ``X-Request-ID`` if it is a plain one, else makes one; ``scope["request_id"]``."""

    def __init__(self, app: ASGIApp, *, version: str, commit: str) -> None:
        self._app = app
        self._build = {"X-Build-Version": version, "X-Build-Commit": commit}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _given(scope) or new_id(REQUEST)
        scope["request_id"] = request_id

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = request_id
                for name, value in self._build.items():
                    headers[name] = value
            await send(message)

        token = request_id_var.set(request_id)
        try:
            await self._app(scope, receive, send_with_headers)
        finally:
            request_id_var.reset(token)


def _given(scope: Scope) -> str | None:
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            return value.decode() if ACCEPTED.fullmatch(value) else None
    return None

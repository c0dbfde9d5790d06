"""Refuses bodies over the limit: by their declared length at once, else as soon as they are over it.

And those that stop coming. A body that moves may take as long as it likes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.errors import BodyTimeout, TooLarge

SILENCE_S: Final = 30.0
"""How long a body may stand still."""


class BodyLimitMiddleware:
    """Bounds request bodies to ``limit`` bytes, at some paths to their own; raises TooLarge, BodyTimeout."""

    def __init__(self, app: ASGIApp, *, limit: int, at: Mapping[str, int]) -> None:
        self._app = app
        self._limit = limit
        self._at = at

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._at.get(scope["path"], self._limit)
        for name, value in scope["headers"]:
            if name == b"content-length" and value.isdigit() and int(value) > limit:
                raise _too_large(limit)
        received, whole = 0, False

        async def bounded() -> Message:
            nonlocal received, whole
            message = await receive() if whole else await _moving(receive)
            received += len(message.get("body", b""))
            if received > limit:
                raise _too_large(limit)
            whole = not message.get("more_body", False)
            return message

        await self._app(scope, bounded, send)


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"The body is larger than {limit} bytes.")


async def _moving(receive: Receive) -> Message:
    with anyio.move_on_after(SILENCE_S):
        return await receive()
    raise BodyTimeout(f"body: did not go on for {SILENCE_S:g} s")

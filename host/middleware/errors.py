"""The border at which exceptions become answers: JSON, with a sentence, and never a stack trace."""

from __future__ import annotations

import logging
from collections.abc import Callable
from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from host.api.openai_errors import PREFIX, openai_error
from host.api.responses import error_headers, error_response
from shared.errors import MethodNotAllowed, NotFound, PicoError

logger = logging.getLogger("picoclaw.http")


class ErrorsMiddleware:
    """Answers what the application raised. What has begun to be sent can only be cut off."""

    def __init__(self, app: ASGIApp, redact: Callable[[str], str]) -> None:
        self._app = app
        self._redact = redact

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = False

        async def observe(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, observe)
        except Exception as error:
            known = _known(error, scope)
            if known is None:
                logger.exception("A request failed inside the host")
                known = PicoError("The request failed inside the host.")
            if begun:
                raise
            known.message = self._redact(known.message)
            await _answer(known, scope)(scope, receive, send)


def _answer(error: PicoError, scope: Scope) -> Response:
    if scope["path"].startswith(PREFIX):
        return openai_error(error, error_headers(error))
    return error_response(error, scope["request_id"])


def _known(error: Exception, scope: Scope) -> PicoError | None:
    if isinstance(error, PicoError):
        return error
    if isinstance(error, HTTPException):
        if error.status_code == HTTPStatus.NOT_FOUND:
            return NotFound("There is nothing at this path.")
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            allowed = (error.headers or {}).get("Allow", "")
            sentence = f"{scope['method']} is not possible here; possible: {allowed}."
            return MethodNotAllowed(sentence, allowed=allowed)
    return None

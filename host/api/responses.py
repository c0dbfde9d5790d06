"""JSON answers and the one shape of an error."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from shared import jsons
from shared.errors import MethodNotAllowed, PicoError


class JSON(Response):
    """A JSON answer by the project's encoder."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Encode the content."""
        return jsons.dump_bytes(content)


def error_response(error: PicoError, request_id: str) -> JSON:
    """Return the error as every error leaves: a sentence, a code, the request's id."""
    body: dict[str, Any] = {"error": error.message, "code": error.code, "request_id": request_id}
    conversation_id = getattr(error, "conversation_id", None)
    if conversation_id is not None:
        body["conversation_id"] = conversation_id
    return JSON(body, status_code=error.status, headers=error_headers(error))


def error_headers(error: PicoError) -> dict[str, str]:
    """Return what an error says beside its body."""
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    if error.status == 408:
        headers["Connection"] = "close"
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, MethodNotAllowed):
        headers["Allow"] = error.allowed
    return headers

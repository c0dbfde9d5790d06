"""How the OpenAI-compatible door refuses, in the words of OpenAI's API (its reference: errors)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from host.http.bodies import JSON
from shared.errors import PicoError

PREFIX: Final = "/v1/"
"""Everything below answers, and fails, in OpenAI's shapes."""

NO_RETRY: Final = {"x-should-retry": "false"}
"""What the official clients obey: the message is stored, so sending it again would say it twice."""

TYPES: Final = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def error_body(message: str, status: int, code: str | None) -> dict[str, Any]:
    """Return an error as OpenAI's clients read it; ``param`` is the field that the sentence begins with."""
    kind = TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    if code == "insufficient_quota":
        kind = code
    field, colon, _ = message.partition(": ")
    named = status == 400 and colon and " " not in field
    return {"error": {"message": message, "type": kind, "param": field if named else None, "code": code}}


def openai_error(error: PicoError, headers: Mapping[str, str]) -> JSON:
    """Return a refusal in OpenAI's shape, with the headers that it has anyway."""
    code = "invalid_api_key" if error.status == 401 else error.code
    return JSON(
        error_body(error.message, error.status, code), status_code=error.status, headers=dict(headers)
    )

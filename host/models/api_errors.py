"""From the errors of the SDK, and of the API inside a stream, to ``ModelError``."""

from __future__ import annotations

import json
import math
import re
from email.utils import parsedate_to_datetime
from typing import Any, Final

import anthropic
import httpx2

from host.models.overflow import overflow
from host.ports import ModelError
from shared.clock import ms_of, now_ms

SAID: Final = 500
"""Characters of the API's own words that are kept."""

# An error event inside a stream comes with the stream's own 200; its type says which status it stands for
# (https://platform.claude.com/docs/en/api/errors).
_STATUS_OF_TYPE: Final = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}
_SENTENCES: Final = {
    400: "The model API refused the request",
    401: "The model API refused the credential",
    403: "The model API denies this credential the request",
    404: "The model API knows no such model or address",
    413: "The request is too large for the model API",
    422: "The model API refused the request",
    429: "The model API is limiting the rate of requests",
    529: "The model API is overloaded",
}
_RETRYABLE: Final = frozenset({408, 409, 429})
_NOT_ABOUT_SIZE: Final = frozenset({401, 403, 429})
_TYPE: Final = re.compile("[A-Za-z_]{1,60}")


def error_of(failure: anthropic.APIError) -> ModelError:
    """Return what an error of the SDK means to the agent."""
    if isinstance(failure, anthropic.APIStatusError):
        return status_error(failure.response, failure.body)
    if isinstance(failure, anthropic.APITimeoutError):
        return ModelError("The model API did not answer in time.", retryable=True)
    return ModelError("The model API could not be reached.", retryable=True)


def status_error(response: httpx2.Response, body: object) -> ModelError:
    """Return the error that an answer is; one inside an answer of 200 stands for its type or code."""
    error = _error_in(body)
    kind = str(error.get("type"))
    kind = kind if _TYPE.fullmatch(kind) and kind != "None" else ""
    status = response.status_code
    if response.is_success:
        code = error.get("code")
        status = code if isinstance(code, int) and 400 <= code < 600 else _STATUS_OF_TYPE.get(kind, 500)
    sentence = _SENTENCES.get(status, "The model API failed")
    what = f"{status} {kind}" if kind else str(status)
    size = None if status in _NOT_ABOUT_SIZE else overflow(_text(body))
    too_large = status == 413 and size is None
    return ModelError(
        f"{sentence} ({what}).",
        retryable=size is None and _is_retryable(status, response.headers),
        retry_after_s=_retry_after(response.headers),
        status=status,
        reason="too_long" if too_large else size.reason if size else "",
        tokens=size.tokens if size else None,
        window=size.window if size else None,
        output=size.output if size else None,
        said=_said(body, error, response),
    )


def not_messages(kind: str) -> ModelError:
    """Return the error for an answer of 200 that is none of this API."""
    return ModelError(
        f"The server answered {kind}, which is no answer of the Messages API. Check the address of the model "
        "(ANTHROPIC_BASE_URL or api_base).",
        retryable=False,
    )


def _error_in(body: object) -> dict[str, Any]:
    body = body[0] if isinstance(body, list) and len(body) == 1 else body
    error = body.get("error", body) if isinstance(body, dict) else {}
    return error if isinstance(error, dict) else {"message": error}


def _said(body: object, error: dict[str, Any], response: httpx2.Response) -> str:
    """Return the reason in one line: its message if there is one, else the whole body; no page of HTML."""
    words = error.get("message") or error.get("detail") or _text(body)
    text = words if isinstance(words, str) else _text(words)
    if text.lstrip().startswith("<"):
        text = f"[{response.headers.get('content-type', 'text/html')}]"
    return " ".join(text.split())[:SAID]


def _text(body: object) -> str:
    if body is None:
        return ""
    return body if isinstance(body, str) else json.dumps(body, ensure_ascii=False)


def _is_retryable(status: int, headers: httpx2.Headers) -> bool:
    # The API's own word counts more than the status: a 429 for an exhausted budget says "false".
    word = headers.get("x-should-retry")
    if word in ("true", "false"):
        return bool(word == "true")
    return status in _RETRYABLE or status >= 500


def _retry_after(headers: httpx2.Headers) -> float | None:
    millis = _number(headers.get("retry-after-ms"))
    if millis is not None:
        return millis / 1000
    value = headers.get("retry-after")
    seconds = _number(value)
    return _until(value) if seconds is None and value else seconds


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None


def _until(date: str) -> float | None:
    try:
        moment = parsedate_to_datetime(date)
    except ValueError:
        return None
    return max(0.0, (ms_of(moment) - now_ms()) / 1000)

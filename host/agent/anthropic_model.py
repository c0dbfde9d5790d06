"""The model behind the real ``anthropic`` SDK. Importing this costs half a second: the host doesn't, its
model process does (``host.agent.remote``).

CPU for a reply of 50 deltas: 1.3 ms as written here; 1.9 ms with ``messages.create(stream=True)``, which
builds a pydantic object per event and walks the request once more; 3.9 ms with ``messages.stream()``.
With 100 messages of history: 1.4, 2.5 and 4.6 ms.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Awaitable, Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import Any, Final

import anthropic
import httpx2
from anthropic import AsyncAnthropic, AsyncStream

from host.agent.accumulator import Accumulator
from host.agent.models import Delta, ModelConfig, ModelError, Reply
from host.agent.pacing import Pacer, host_pacer
from shared.clock import ms_of, now_ms
from shared.jsons import dump_bytes

API_URL: Final = "https://api.anthropic.com"
OFFLINE_URL: Final = "http://offline.invalid"

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
    429: "The model API is limiting the rate of requests",
    529: "The model API is overloaded",
}
_RETRYABLE: Final = frozenset({408, 409, 429})

# Compatible servers say it in their own words.
_TOO_LONG: Final = re.compile(
    r"\b(?:prompt|input|request)\b.{0,30}too long|context.{0,20}(?:window|length|limit|size)|too many tokens",
    re.IGNORECASE,
)
_LARGER_THAN: Final = re.compile(r"(\d{1,9})(?: tokens?| \+ \d+)? > (\d{4,9})")
_THINKING: Final = re.compile(r"signature.{0,40}thinking|thinking.{0,40}signature", re.IGNORECASE)


def make_client(config: ModelConfig) -> AsyncAnthropic:
    """Return an SDK client for the configuration; whoever asks for it closes it.

    It never retries (the agent loop retries a step inside the run's time) and takes nothing from the
    environment but proxies and certificates. Raises ``Misconfigured`` without a credential for the API.
    """
    config.check()
    # The SDK would merge these headers, an Authorization among them, over the settings' own.
    os.environ.pop("ANTHROPIC_CUSTOM_HEADERS", None)
    if config.offline:
        return _client(config, "offline", None, OFFLINE_URL, _offline_http())
    if config.api_key or config.auth_token:
        key, token = config.api_key or None, None if config.api_key else config.auth_token
    else:
        key, token = "none", None  # the SDK wants one where the server may not
    http = anthropic.DefaultAsyncHttpxClient(follow_redirects=False)
    return _client(config, key, token, config.base_url or API_URL, http)


def _client(
    config: ModelConfig, key: str | None, token: str | None, url: str, http: httpx2.AsyncClient
) -> AsyncAnthropic:
    # The SDK sends a key as a Bearer token; many compatible servers know only the older header.
    older = {"X-Api-Key": key} if key and config.api_key and config.base_url else None
    return AsyncAnthropic(
        api_key=key,
        auth_token=token,
        webhook_key="",
        base_url=url,
        timeout=httpx2.Timeout(config.timeout_s, connect=config.connect_timeout_s),
        max_retries=0,
        default_headers=older,
        open_telemetry=False,
        http_client=http,
    )


def _offline_http() -> httpx2.AsyncClient:
    from host.agent.offline.transport import OfflineTransport

    return httpx2.AsyncClient(transport=OfflineTransport(), trust_env=False)


class AnthropicModel:
    """``ModelPort`` over an SDK client, which it owns from then on."""

    def __init__(self, client: AsyncAnthropic, pacer: Pacer | None = None) -> None:
        self._client = client
        self._pacer = pacer or host_pacer()

    async def reply(self, request: Mapping[str, Any], on_delta: Callable[[Delta], Awaitable[None]]) -> Reply:
        """See ``ModelPort.reply``."""
        return await self.answer(dump_bytes({**request, "stream": True}), on_delta)

    async def answer(self, request: bytes, on_delta: Callable[[Delta], Awaitable[None]]) -> Reply:
        """Answer a Messages request (JSON, with ``stream``) as ``reply`` does."""
        answer = Accumulator()
        stream = await self._open(request)
        async with stream:
            while (event := await _next(stream)) is not None:
                delta = answer.feed(event)
                if delta is not None:
                    await on_delta(delta)
                await self._pacer.turn()
        return answer.reply()

    async def aclose(self) -> None:
        """Close the client and its connections."""
        await self._client.close()

    async def _open(self, request: bytes) -> AsyncStream[object]:
        # The SDK's own request, stream and errors, with the body encoded once and events left as plain
        # objects: see the figures above.
        try:
            return await self._client.post(
                "/v1/messages",
                cast_to=object,
                content=request,
                stream=True,
                stream_cls=AsyncStream[object],
            )
        except anthropic.APIError as failure:
            raise _error_of(failure) from None


async def _next(stream: AsyncStream[object]) -> object | None:
    try:
        return await anext(stream, None)
    except anthropic.APIError as failure:
        raise _error_of(failure) from None
    except httpx2.TimeoutException:
        raise ModelError("The model API fell silent in the middle of its answer.", retryable=True) from None
    except (httpx2.TransportError, httpx2.StreamError, httpx2.DecodingError, ValueError, RecursionError):
        raise ModelError("The model's answer broke off.", retryable=True) from None


def _error_of(failure: anthropic.APIError) -> ModelError:
    if isinstance(failure, anthropic.APIStatusError):
        return _status_error(failure)
    if isinstance(failure, anthropic.APITimeoutError):
        return ModelError("The model API did not answer in time.", retryable=True)
    return ModelError("The model API could not be reached.", retryable=True)


def _status_error(failure: anthropic.APIStatusError) -> ModelError:
    kind = failure.type if failure.type in _STATUS_OF_TYPE else None
    status = failure.status_code
    if failure.response.is_success:
        status = _STATUS_OF_TYPE.get(kind or "api_error", 500)
    sentence = _SENTENCES.get(status, "The model API failed")
    what = f"{status} {kind}" if kind else str(status)
    headers = failure.response.headers
    said = str(failure.message)
    tokens, window = _sizes(said)
    too_long = status == 413 or (status == 400 and _TOO_LONG.search(said))
    return ModelError(
        f"{sentence} ({what}).",
        retryable=_is_retryable(status, headers),
        retry_after_s=_retry_after(headers),
        status=status,
        reason="too_long" if too_long else "thinking" if status == 400 and _THINKING.search(said) else "",
        tokens=tokens if too_long else None,
        window=window if too_long else None,
    )


def _sizes(said: str) -> tuple[int | None, int | None]:
    """Return the tokens and the window that the API named, as in ``208310 tokens > 200000 maximum``."""
    found = _LARGER_THAN.search(said)
    return (int(found[1]), int(found[2])) if found else (None, None)


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

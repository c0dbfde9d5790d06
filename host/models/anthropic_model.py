"""The model behind the real ``anthropic`` SDK. Importing this costs half a second: the host doesn't, its
model process does (``host.models``).

CPU for a reply of 50 deltas over httpx's own transport: 1.3 ms with the SDK's ``post`` and plain events; 1.9
ms with ``messages.create(stream=True)``, which builds a pydantic object per event and walks the request once
more; 3.9 ms with ``messages.stream()``. With 100 messages of history: 1.4, 2.5 and 4.6 ms. ``post`` makes the
same headers and address anew each time, half of what a short reply takes: here the SDK makes them once.
Where no proxy is set, ``host.egress.transport`` takes the place of httpx's transport.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from functools import cached_property, partial
from typing import Any, Final
from urllib.request import getproxies

import anthropic
import anyio
import httpx2
from anthropic import AsyncAnthropic, AsyncStream
from anthropic._models import FinalRequestOptions

from host.egress.bounded import ACCEPTED, Bounded, bound
from host.egress.transport import ApiTransport
from host.models.accumulator import Accumulator, events_of
from host.models.api_errors import json_or_text, not_messages, status_error
from host.models.process import SILENCE_S, ModelConfig
from host.ports import ModelError, OnDelta, Reply
from shared.jsons import dump_bytes, loads

SLICE_S: Final = 0.005
"""How long streams work before the loop comes round."""

AT_ONCE: Final = 8
"""How many of those who wait go on in one round."""


class Pacer:
    """A fair share of the event loop for streams that have more to tell than it can take.

    What a model has sent is read and parsed in one go as long as there is any, so a thousand fast streams
    would keep everything else (a finished run, a GET /health) waiting for each of them. Here they take turns:
    together they work for a slice of time, then the loop comes round, then the next few go on. Who falls
    behind is held up by the network's own flow control.
    """

    def __init__(self) -> None:
        self.room = asyncio.Event()
        """Unset while what the streams tell can't be passed on."""
        self.room.set()
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._until = 0.0
        self._round_ahead = False

    async def turn(self) -> None:
        """Return when the caller may take its next piece: at once, unless this round's time is used up."""
        await self.room.wait()
        if time.monotonic() < self._until:
            return
        loop = asyncio.get_running_loop()
        if not self._round_ahead:
            # The first one of a quiet loop: the time begins now, and the loop's next round ends it.
            self._begin(loop)
            return
        turn = loop.create_future()
        self._waiting.append(turn)
        await turn

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        self._until = time.monotonic() + SLICE_S
        self._round_ahead = True
        loop.call_soon(self._next_round, loop)

    def _next_round(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._waiting:
            self._round_ahead = False
            return
        self._begin(loop)
        for _ in range(min(AT_ONCE, len(self._waiting))):
            turn = self._waiting.popleft()
            if not turn.done():  # its caller was cancelled
                turn.set_result(None)


OFFLINE_URL: Final = "http://offline.invalid"

_STREAMS: Final = ("text/event-stream", "application/octet-stream", "text/plain", "")
"""Content types behind which servers stream; others are read as a whole, or are no answer."""
_UNSAID: Final = (
    "Lang",
    "Package-Version",
    "OS",
    "Arch",
    "Runtime",
    "Runtime-Version",
    "Async",
    "Retry-Count",
)
"""What the SDK would tell every server, with each request, about where it runs."""
_NAMELESS_ERROR: Final = re.compile(r'\s*\{\s*"(?:type"\s*:\s*"error|error)"')
_LARGEST: Final = 64 * 1024 * 1024
"""Bytes of an answer, unpacked."""
_LONGEST_REASON: Final = 64 * 1024
_REASON_S: Final = 10.0


def make_client(config: ModelConfig) -> AsyncAnthropic:
    """Return an SDK client for the configuration; whoever asks for it closes it.

    It never retries (the agent loop retries a step inside the run's time) and takes nothing from the
    environment but proxies and certificates. Raises ``Misconfigured`` without a credential for the API.
    """
    config.check()
    # The SDK would merge these headers, an Authorization among them, over the settings' own.
    for name in ("ANTHROPIC_CUSTOM_HEADERS", "ANTHROPIC_BASE_URL"):
        os.environ.pop(name, None)
    if config.offline:
        return _client(config, "offline", None, OFFLINE_URL, _offline_http())
    if config.api_key or config.auth_token:
        key, token = config.api_key or None, None if config.api_key else config.auth_token
    else:
        key, token = "none", None  # the SDK wants one where the server may not
    make = (
        anthropic.DefaultAsyncHttpxClient
        if getproxies()
        else partial(httpx2.AsyncClient, transport=ApiTransport())
    )
    http = make(follow_redirects=False, headers=ACCEPTED, event_hooks={"response": [_bounded]})
    return _client(config, key, token, config.base_url, http)


def _client(
    config: ModelConfig, key: str | None, token: str | None, url: str | None, http: httpx2.AsyncClient
) -> AsyncAnthropic:
    headers: dict[str, Any] = {f"X-Stainless-{what}": anthropic.omit for what in _UNSAID}
    if key and config.api_key and config.base_url:
        # The SDK sends a key as a Bearer token; many compatible servers know only the older header.
        headers["X-Api-Key"] = key
    return AsyncAnthropic(
        api_key=key,
        auth_token=token,
        webhook_key="",
        base_url=url,
        timeout=httpx2.Timeout(config.timeout_s, connect=config.connect_timeout_s),
        max_retries=0,
        default_headers=headers,
        open_telemetry=False,
        http_client=http,
    )


def _offline_http() -> httpx2.AsyncClient:
    from host.models.offline.replies import OfflineTransport

    return httpx2.AsyncClient(transport=OfflineTransport(), trust_env=False)


UNSENDABLE: Final = "The model API can't be asked: no request can carry its key, or another of its headers."


class AnthropicModel:
    """A model's API by an SDK client, which it owns from then on."""

    def __init__(
        self, client: AsyncAnthropic, pacer: Pacer | None = None, *, silence_s: float = SILENCE_S
    ) -> None:
        self._client = client
        self._pacer = pacer or Pacer()
        self._silence_s = silence_s

    async def reply(self, request: Mapping[str, Any], on_delta: OnDelta) -> Reply:
        """See ``host.ports.Ask``."""
        return await self.answer(dump_bytes({**request, "stream": True}), on_delta)

    async def answer(self, request: bytes, on_delta: OnDelta) -> Reply:
        """Answer a Messages request (JSON, with ``stream``) as ``reply`` does."""
        answer = Accumulator()
        response = await self._open(request)
        try:
            kind = _kind(response)
            if kind not in _STREAMS:
                return await _whole(response, kind, answer, on_delta)
            # From now on silence means that the answer broke off: before it, a long prompt may take its time.
            response.request.extensions["timeout"]["read"] = self._silence_s
            async for event in _events(response):
                delta = answer.feed(event)
                if delta is not None:
                    on_delta(delta)
                await self._pacer.turn()
        finally:
            await response.aclose()
        return answer.reply()

    async def aclose(self) -> None:
        """Close the client and its connections."""
        await self._client.close()

    @cached_property
    def _made(self) -> httpx2.Request:
        """A request as the SDK makes it, without a body."""
        options = FinalRequestOptions.construct(method="post", url="/v1/messages")
        made = self._client._build_request(options)
        del made.headers["Content-Length"]
        return made

    async def _open(self, body: bytes) -> httpx2.Response:
        http = self._client._client
        try:
            made = self._made
            within = {**made.extensions, "timeout": dict(made.extensions["timeout"])}
            request = httpx2.Request(
                "POST", made.url, headers=made.headers, cookies=http.cookies, content=body, extensions=within
            )
        except _FAILURES as failure:
            raise _broken_off(failure) from None
        try:
            response = await http.send(request, stream=True)
        except httpx2.TimeoutException:
            raise ModelError("The model API did not answer in time.", retryable=True) from None
        except httpx2.LocalProtocolError:  # its words may hold the key
            raise ModelError(UNSENDABLE, retryable=False) from None
        except Exception:  # noqa: BLE001 - whatever it is, there is no answer
            raise ModelError("The model API could not be reached.", retryable=True) from None
        if response.is_success:
            return response
        try:
            await response.aread()
        except _FAILURES as failure:
            raise _broken_off(failure) from None
        raise status_error(response, json_or_text(response.text.strip()))


class _Reason(httpx2.AsyncByteStream):
    """The body of a refusal: as much of it as is read, for as long as anybody waits for a reason."""

    def __init__(self, body: httpx2.AsyncByteStream) -> None:
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        left = _LONGEST_REASON
        with anyio.move_on_after(_REASON_S), suppress(httpx2.TransportError, httpx2.DecodingError):
            async for piece in self._body:
                yield piece[:left]
                left -= len(piece)
                if left <= 0:
                    break

    async def aclose(self) -> None:
        await self._body.aclose()


class _Answer(Bounded, httpx2.AsyncByteStream):
    too_much = httpx2.DecodingError


async def _bounded(response: httpx2.Response) -> None:
    bound(response, _Answer, _LARGEST)
    if not response.is_success and isinstance(response.stream, httpx2.AsyncByteStream):
        response.stream = _Reason(response.stream)


async def _events(response: httpx2.Response) -> AsyncIterator[object]:
    """Yield a stream's events as plain objects, also those without an ``event`` line, as other clients do."""
    try:
        async for event in AsyncStream.raw_events(response):
            name = event.event or _name_of(event.data)
            if name == "error":
                raise status_error(response, json_or_text(event.data))
            if name not in ("", "ping") and event.data:
                yield event.json()
    except _FAILURES as failure:
        raise _broken_off(failure) from None


def _name_of(data: str) -> str:
    if data == "[DONE]":
        return ""
    return "error" if _NAMELESS_ERROR.match(data) else "message"


_FAILURES: Final = (
    httpx2.TransportError, httpx2.StreamError, httpx2.DecodingError, ValueError, RecursionError,
)  # fmt: skip


def _broken_off(failure: Exception) -> ModelError:
    if isinstance(failure, httpx2.TimeoutException):
        return ModelError("The model API fell silent in the middle of its answer.", retryable=True)
    if isinstance(failure, httpx2.DecodingError):
        return ModelError(f"The server at the model's address {failure}.", retryable=False)
    return ModelError("The model's answer broke off.", retryable=True)


def _kind(response: httpx2.Response) -> str:
    return str(response.headers.get("content-type", "")).partition(";")[0].strip().lower()


async def _whole(response: httpx2.Response, kind: str, answer: Accumulator, on_delta: OnDelta) -> Reply:
    """Return the reply of a server that doesn't stream, though it was asked to."""
    if "json" not in kind:
        raise not_messages(kind)
    try:
        message = loads(await response.aread())
    except _FAILURES as failure:
        raise _broken_off(failure) from None
    if isinstance(message, dict) and message.get("error"):
        raise status_error(response, message)
    if not isinstance(message, dict) or not isinstance(message.get("content"), list):
        raise not_messages(f"{kind} without content blocks")
    for event in events_of(message):
        if (delta := answer.feed(event)) is not None:
            on_delta(delta)
    return answer.reply()

"""The transport under the SDK that answers for the network: no socket, no clock, no state."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import Final
from uuid import uuid4

import httpx2
from anyio.lowlevel import checkpoint

from host.models.offline.protocol import InvalidRequest, checked, error_body, input_tokens, sse
from host.models.offline.replies import reply_to
from shared.jsons import JSONDecodeError, dump_bytes, loads


class OfflineTransport(httpx2.AsyncBaseTransport):
    """Answers ``POST /v1/messages`` and ``/v1/messages/count_tokens`` as the API would, all else 404."""

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Answer one request; a bad one gets the API's 400 body."""
        answer = _ROUTES.get((request.method, request.url.path))
        if answer is None:
            return _error(404, "not_found_error", "Not found")
        try:
            return answer(loads(await request.aread()))
        except JSONDecodeError:
            return _error(400, "invalid_request_error", "The request body is not valid JSON")
        except InvalidRequest as bad:
            return _error(400, "invalid_request_error", str(bad))


class _Frames(httpx2.AsyncByteStream):
    """A body sent piece by piece, giving way to other tasks between two pieces as a socket would."""

    def __init__(self, frames: Iterable[bytes]) -> None:
        self._frames = frames

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for frame in self._frames:
            await checkpoint()
            yield frame


def _messages(body: object) -> httpx2.Response:
    request = checked(body)
    message = reply_to(request)
    if not request.get("stream"):
        return _json(200, message.body())
    headers = {"content-type": "text/event-stream; charset=utf-8", "request-id": _request_id()}
    return httpx2.Response(200, headers=headers, stream=_Frames(sse(event) for event in message.events()))


def _count_tokens(body: object) -> httpx2.Response:
    return _json(200, {"input_tokens": input_tokens(checked(body, counting=True))})


_ROUTES: Final = {
    ("POST", "/v1/messages"): _messages,
    ("POST", "/v1/messages/count_tokens"): _count_tokens,
}


def _error(status: int, kind: str, sentence: str) -> httpx2.Response:
    return _json(status, error_body(kind, sentence, _request_id()))


def _json(status: int, body: object) -> httpx2.Response:
    headers = {"content-type": "application/json", "request-id": _request_id()}
    return httpx2.Response(status, headers=headers, content=dump_bytes(body))


def _request_id() -> str:
    return f"req_{uuid4().hex}"

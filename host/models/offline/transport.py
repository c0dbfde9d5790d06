"""The transport under the SDK that answers for the network: no socket, no clock, no state."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any, Final

import httpx2
from anyio.lowlevel import checkpoint

from host.models.accumulator import events_of
from host.models.offline.replies import reply_to
from shared.jsons import dump_bytes, loads

_PIECE: Final = 48
"""Characters of a text that come at a time."""


class OfflineTransport(httpx2.AsyncBaseTransport):
    """Streams a reply to every request, as ``POST /v1/messages`` does."""

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Answer one request."""
        message = reply_to(loads(await request.aread()))
        return httpx2.Response(200, headers={"content-type": "text/event-stream"}, stream=_Stream(message))


class _Stream(httpx2.AsyncByteStream):
    """The events of a message, giving way to other tasks between two of them as a socket would."""

    def __init__(self, message: Mapping[str, Any]) -> None:
        self._message = message

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for event in events_of(self._message):
            for piece in _in_pieces(event):
                await checkpoint()
                yield b"event: %b\ndata: %b\n\n" % (piece["type"].encode(), dump_bytes(piece))


def _in_pieces(event: dict[str, Any]) -> Iterator[dict[str, Any]]:
    block = event.get("content_block", {})
    if block.get("type") != "text":
        yield event
        return
    text = block["text"]
    yield {**event, "content_block": {**block, "text": ""}}
    for at in range(0, len(text), _PIECE):
        delta = {"type": "text_delta", "text": text[at : at + _PIECE]}
        yield {"type": "content_block_delta", "index": event["index"], "delta": delta}

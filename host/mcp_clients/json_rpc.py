"""A small JSON-RPC client over one socket, for the host's own tool server (MCP specification, stdio framing).

The SDK's client costs half a second to import and two tasks per session; the host needs one request and its
answer. There is no task here: the event loop's transport calls in, and the owner closes.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from typing import Any, Final, cast

import anyio
import anyio.lowlevel

from shared import jsons

RESULT_LIMIT: Final = 64 * 1024
"""Most text of one result, in bytes of UTF-8."""


def cut(text: str) -> str:
    """Return the text, or its beginning and a note of how much there was."""
    # Every character has at least one byte, so most texts needn't be encoded to be judged.
    if len(text) * 4 <= RESULT_LIMIT:
        return text
    data = text.encode("utf-8", "replace")
    if len(data) <= RESULT_LIMIT:
        return text
    kept = data[:RESULT_LIMIT].decode("utf-8", "ignore")
    return f"{kept}\n[cut: the result had {len(data)} bytes, {RESULT_LIMIT} are shown]"


LINE_LIMIT: Final = 16 * 1024 * 1024
"""Longest answer that is read, in bytes; a longer one ends the session."""

SENT_LIMIT: Final = 4 * 1024 * 1024
"""Longest line the tool server reads: it would answer a longer one without its id."""
INVALID_REQUEST: Final = -32600


class SessionLost(Exception):
    """The other end is gone; a request in flight may or may not have been served."""


class RequestRefused(Exception):
    """The other end answered with a protocol error, or would have; its sentence."""

    def __init__(self, error: Mapping[str, Any]) -> None:
        super().__init__(str(error.get("message", "no reason given")))
        self.error = error


class JsonRpcClient(asyncio.Protocol):
    """One session's wire. Requests may overlap; a cancelled one leaves no trace but a late answer."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._pending: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._last_id = 0
        self._rest = b""
        self.lost = False

    @classmethod
    async def over(cls, peer: socket.socket) -> JsonRpcClient:
        """Return a client on a connected stream socket, which it then owns."""
        loop = asyncio.get_running_loop()
        _, client = await loop.create_connection(cls, sock=peer)
        return client

    @property
    def busy(self) -> bool:
        """Return whether a request is waiting for its answer."""
        return bool(self._pending)

    async def request(self, method: str, params: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """Return the result; raises SessionLost, RequestRefused, TimeoutError."""
        self._last_id += 1
        request_id = self._last_id
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._pending[request_id] = answer
        try:
            self._send({"jsonrpc": "2.0", "id": request_id, "method": method, "params": params})
            with anyio.fail_after(timeout_s):
                message = await answer
        except BaseException:
            if self._pending.pop(request_id, None) is not None and not self.lost:
                self.notify("notifications/cancelled", {"requestId": request_id})
            raise
        return _result(message)

    def notify(self, method: str, params: Mapping[str, Any] | None = None) -> None:
        """Say something that has no answer; raises SessionLost."""
        message = {"jsonrpc": "2.0", "method": method}
        self._send(message if params is None else {**message, "params": params})

    def close(self) -> None:
        """Close the socket: the other end sees the end of its input."""
        if self._transport is not None:
            self._transport.close()
        self._lose()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport (asyncio's call)."""
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail what is waiting (asyncio's call)."""
        self._lose()

    def data_received(self, data: bytes) -> None:
        """Take in answers (asyncio's call)."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._take(line)
        if len(self._rest) > LINE_LIMIT:
            self.close()

    def _take(self, line: bytes) -> None:
        try:
            message = jsons.loads(line)
            answer = self._pending.pop(message["id"], None)
        except (jsons.JSONDecodeError, KeyError, TypeError):
            return  # a notification, or nothing we could match to a request
        if answer is not None and not answer.done():
            answer.set_result(message)

    def _send(self, message: Mapping[str, Any]) -> None:
        if self.lost or self._transport is None:
            raise SessionLost
        self._transport.write(_line(message))

    def _lose(self) -> None:
        self.lost = True
        pending, self._pending = self._pending, {}
        for answer in pending.values():
            if not answer.done():
                answer.set_exception(SessionLost())


def _line(message: Mapping[str, Any]) -> bytes:
    try:
        line = jsons.dump_bytes(message) + b"\n"
    except TypeError:
        # What can be read at a depth of 1,024 can't be written at one of more than 254.
        raise RequestRefused({"code": INVALID_REQUEST, "message": "It is nested too deeply."}) from None
    if len(line) > SENT_LIMIT:
        raise RequestRefused({"code": INVALID_REQUEST, "message": "It is larger than 4 MiB."})
    return line


def _result(message: dict[str, Any]) -> dict[str, Any]:
    if "result" in message:
        return cast("dict[str, Any]", message["result"])
    raise RequestRefused(message.get("error", {}))

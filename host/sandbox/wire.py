"""The host's end of the supervisor's socket: frames with a length, bounded and checked."""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping, Sequence
from typing import Any, Final

import anyio

from shared.jsons import JSONDecodeError, dump_bytes, loads

MAX_FRAME: Final = 32 << 20
_HEADER: Final = struct.Struct(">I")
_CHUNK: Final = 256 << 10


class Disconnected(Exception):
    """The supervisor is gone, or spoke out of protocol."""


class Wire:
    """Frames over a socket pair, without blocking the event loop. One reader; writers take turns."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._buffer = bytearray()
        self._writing = anyio.Lock()

    def close(self) -> None:
        """Close the socket; the supervisor takes that as the order to end."""
        self._socket.close()

    async def send(self, frame: Mapping[str, Any], descriptors: Sequence[int] = ()) -> None:
        """Send a frame whole, even if the caller is cancelled meanwhile. Raises ``Disconnected``,
        ``ValueError``.

        ``descriptors`` go along with its first bytes; the other side gets copies.
        """
        body = dump_bytes(frame)
        if len(body) > MAX_FRAME:
            raise ValueError("larger than the sandbox takes")
        with anyio.CancelScope(shield=True):
            async with self._writing:
                await self._write(_HEADER.pack(len(body)) + body, descriptors)

    async def _write(self, data: bytes, descriptors: Sequence[int]) -> None:
        rest = memoryview(data)
        while rest:
            try:
                sent = socket.send_fds(self._socket, [rest], descriptors) if descriptors else 0
                descriptors = ()
                rest = rest[sent or self._socket.send(rest) :]
            except BlockingIOError:
                await anyio.wait_writable(self._socket)
            except OSError as error:
                raise Disconnected from error

    async def receive(self) -> dict[str, Any]:
        """Return the next frame. Raises ``Disconnected``."""
        while (frame := self._take()) is None:
            try:
                data = self._socket.recv(_CHUNK)
            except BlockingIOError:
                await anyio.wait_readable(self._socket)
                continue
            except OSError as error:
                raise Disconnected from error
            if not data:
                raise Disconnected
            self._buffer += data
        return frame

    def _take(self) -> dict[str, Any] | None:
        if len(self._buffer) < _HEADER.size:
            return None
        (size,) = _HEADER.unpack_from(self._buffer)
        if size > MAX_FRAME:
            raise Disconnected
        if len(self._buffer) < _HEADER.size + size:
            return None
        body = bytes(self._buffer[_HEADER.size : _HEADER.size + size])
        del self._buffer[: _HEADER.size + size]
        try:
            value = loads(body)
        except JSONDecodeError as error:
            raise Disconnected from error
        if not isinstance(value, dict):
            raise Disconnected
        return value

"""The host's end of a socket into the sandbox: frames with a length, bounded and checked."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Mapping, Sequence
from typing import Any, Final

import anyio

from host.ports import SandboxFault, SandboxReport
from host.sandbox.policy import SandboxPolicy
from shared.jsons import JSONDecodeError, dump_bytes, loads


def configuration(policy: SandboxPolicy, temporary: str) -> dict[str, Any]:
    """Return the first frame; ``temporary`` is the directory of the private directories."""
    limits = policy.limits
    return {
        "workspace": str(policy.workspace),
        "temporary": temporary,
        "restrict_to_workspace": policy.restrict_to_workspace,
        "allow_read_outside_workspace": policy.allow_read_outside_workspace,
        "read_paths": list(policy.read_paths),
        "write_paths": list(policy.write_paths),
        "skill_paths": [str(path) for path in policy.skill_paths],
        "secret_paths": [str(path) for path in policy.secret_paths],
        "allow_network": policy.allow_network,
        "uid": policy.uid,
        "gid": policy.gid if policy.gid is not None else policy.uid,
        "max_landlock_abi": policy.max_landlock_abi,
        "max_level": policy.max_level,
        "path": policy.path,
        "time_zone": policy.time_zone,
        "processes": limits.processes,
        "memory": limits.memory,
        "data": limits.data,
        "file_size": limits.file_size,
        "open_files": limits.open_files,
        "output": limits.output,
        "temporary_bytes": limits.temporary,
        "reaper_idle_s": limits.reaper_idle_s,
    }


def report_of(value: Any) -> SandboxReport:
    """Read the supervisor's report."""
    return SandboxReport(
        level=int(value["level"]),
        landlock_abi=int(value["abi"]),
        layers={str(name): bool(held) for name, held in value["layers"].items()},
        missing=tuple(str(name) for name in value["missing"]),
        uid=int(value["uid"]),
        skipped=tuple(str(path) for path in value["skipped"]),
    )


MAX_FRAME: Final = 32 << 20
ANSWER_TIMEOUT_S: Final = 30.0
CANCEL_TIMEOUT_S: Final = 10.0
_HEADER: Final = struct.Struct(">I")
_CHUNK: Final = 256 << 10


class Disconnected(Exception):
    """The other side is gone, or spoke out of protocol."""


def encode(frame: Mapping[str, Any]) -> bytes:
    """Return a frame as bytes. Raises ``ValueError`` or ``TypeError`` for what can't be one."""
    body = dump_bytes(frame)
    if len(body) > MAX_FRAME:
        raise ValueError("larger than the sandbox takes")
    return _HEADER.pack(len(body)) + body


def checked(answer: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an answer carries; what comes out of the sandbox is not trusted to have the right shape.

    Raises ``SandboxFault``.
    """
    content = answer.get("ok")
    if isinstance(content, dict):
        return content
    error = answer.get("error")
    raise SandboxFault(error if isinstance(error, str) else "the sandbox gave no valid answer")


class Wire:
    """Frames over a socket pair, without blocking the event loop. One reader; writers take turns."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._buffer = bytearray()
        self._writing = anyio.Lock()

    def close(self) -> None:
        """Close the socket; the other side takes that as the order to end."""
        self._socket.close()

    def shut_down(self) -> None:
        """Have whoever waits here, and the other side, see the end; to be closed afterwards."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def has_ended(self) -> bool:
        """Return whether the other side is gone, or said something though nobody asked."""
        if self._buffer:
            return True
        try:
            self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True

    async def send(self, frame: Mapping[str, Any], descriptors: Sequence[int] = ()) -> None:
        """Send a frame whole, even if the caller is cancelled meanwhile. Raises ``Disconnected``,
        ``ValueError``.

        ``descriptors`` go along with its first bytes; the other side gets copies.
        """
        data = encode(frame)
        with anyio.CancelScope(shield=True):
            async with self._writing:
                await self.write(data, descriptors)

    async def write(self, data: bytes, descriptors: Sequence[int] = ()) -> None:
        """Write bytes, by the only writer there is. Raises ``Disconnected``."""
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

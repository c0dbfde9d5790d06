"""Newline-delimited JSON-RPC over two descriptors, driven by readiness instead of threads.

The streams satisfy the SDK's read and write protocols directly: no task and no queue stands between the
kernel and the dispatcher. Contract of the wire: MCP specification, transports, stdio.
"""

import errno
import fcntl
import os
import socket
import stat
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final

import anyio
import mcp_types as types
from anyio.abc import ObjectReceiveStream, ObjectSendStream
from mcp.shared.message import ServerMessageMetadata, SessionMessage
from pydantic import ValidationError

from shared import jsons

LINE_LIMIT: Final = 4 * 1024 * 1024
"""Longest line that is read, in bytes; a longer one is skipped and refused."""
DRAIN_SECONDS: Final = 20
"""How long running calls may go on after the client closed its end."""
_CHUNK: Final = 65_536

RequestId = int | str


class NotPollable(Exception):
    """A descriptor that the kernel can't report readiness for (a regular file), or that can't be reopened."""


class Calls:
    """The requests that have arrived and not yet been answered."""

    def __init__(self) -> None:
        self._open: set[RequestId] = set()
        self._idle = anyio.Event()
        self._idle.set()

    def begin(self, request_id: RequestId) -> bool:
        """Note a request; False if its id is in use."""
        if request_id in self._open:
            return False
        if not self._open:
            self._idle = anyio.Event()
        self._open.add(request_id)
        return True

    def end(self, request_id: RequestId | None) -> None:
        """Note that the request needs no answer any more."""
        if request_id in self._open:
            self._open.discard(request_id)
            if not self._open:
                self._idle.set()

    async def finished(self) -> None:
        """Return once every request is answered, or DRAIN_SECONDS have passed."""
        with anyio.move_on_after(DRAIN_SECONDS):
            await self._idle.wait()


class Lines:
    """Cuts a byte stream into lines of bounded length."""

    def __init__(self, limit: int = LINE_LIMIT) -> None:
        self._limit = limit
        self._rest = bytearray()
        self._skipping = False

    def feed(self, data: bytes) -> list[bytes | None]:
        """Return the lines that ``data`` completes, in order; None stands for one that was too long."""
        *ended, rest = data.split(b"\n")
        lines: list[bytes | None] = []
        for part in ended:
            lines.append(self._end(part))
        self._keep(rest)
        return lines

    def _end(self, part: bytes) -> bytes | None:
        self._keep(part)
        line = None if self._skipping else bytes(self._rest)
        self._rest.clear()
        self._skipping = False
        return line

    def _keep(self, part: bytes) -> None:
        if self._skipping or len(self._rest) + len(part) > self._limit:
            self._skipping = True
            self._rest.clear()
        else:
            self._rest += part


class MessageWriter(ObjectSendStream[SessionMessage]):
    """The SDK's write stream: one message, one line."""

    def __init__(self, write: Callable[[bytes], Awaitable[None]], calls: Calls) -> None:
        self._write = write
        self._calls = calls
        self._lock = anyio.Lock(fast_acquire=True)

    async def send(self, item: SessionMessage, /) -> None:
        """Write one message; raises BrokenResourceError when the client is gone."""
        message = item.message
        try:
            await self.line(message.model_dump(by_alias=True, exclude_unset=True, mode="json"))
        finally:
            # Also when nobody is there to read it: the end of input must not wait for this call.
            if isinstance(message, types.JSONRPCResponse | types.JSONRPCError):
                self._calls.end(message.id)

    async def refuse(self, code: int, sentence: str, request_id: RequestId | None = None) -> None:
        """Answer something that never became a request."""
        await self.line({"jsonrpc": "2.0", "id": request_id, "error": {"code": code, "message": sentence}})

    async def line(self, value: dict[str, Any]) -> None:
        """Write one line; lines never mix."""
        async with self._lock:
            await self._write(jsons.dump_bytes(value) + b"\n")

    async def aclose(self) -> None:
        """Nothing to close: the process owns the descriptor."""


class MessageReader(ObjectReceiveStream[SessionMessage | Exception]):
    """The SDK's read stream. What isn't a message is refused here, by the rules of JSON-RPC 2.0."""

    def __init__(self, read: Callable[[], Awaitable[bytes]], writer: MessageWriter, calls: Calls) -> None:
        self._read = read
        self._writer = writer
        self._calls = calls
        self._lines = Lines()
        self._ready: deque[bytes | None] = deque()
        self._closed = False

    async def receive(self) -> SessionMessage | Exception:
        """Return the next message; raises EndOfStream after the last call is answered."""
        while not self._closed:
            if not self._ready:
                data = await self._read()
                if not data:
                    break
                self._ready.extend(self._lines.feed(data))
                continue
            message = await self._message(self._ready.popleft())
            if message is not None:
                return message
        await self._calls.finished()
        raise anyio.EndOfStream

    async def _message(self, line: bytes | None) -> SessionMessage | None:
        if line is None:
            await self._writer.refuse(types.INVALID_REQUEST, "The line is longer than 4 MiB.")
            return None
        if not line.strip():
            return None
        try:
            value = jsons.loads(line)
        except jsons.JSONDecodeError:
            await self._writer.refuse(types.PARSE_ERROR, "The line is not JSON in UTF-8.")
            return None
        try:
            message = types.jsonrpc_message_adapter.validate_python(value, by_name=False)
        except ValidationError:
            message = None
        # A request whose id is of the wrong kind would pass for a notification.
        if message is None or (isinstance(message, types.JSONRPCNotification) and "id" in value):
            await self._writer.refuse(types.INVALID_REQUEST, "Not a JSON-RPC 2.0 message.", _id_of(value))
            return None
        return await self._accepted(message)

    async def _accepted(self, message: types.JSONRPCMessage) -> SessionMessage | None:
        if not isinstance(message, types.JSONRPCRequest):
            return SessionMessage(message)
        request_id = message.id
        if not self._calls.begin(request_id):
            await self._writer.refuse(types.INVALID_REQUEST, "The request id is in use.")
            return None

        async def unanswered() -> None:
            self._calls.end(request_id)

        return SessionMessage(message, ServerMessageMetadata(on_request_unanswered=unanswered))

    async def aclose(self) -> None:
        """Read no more."""
        self._closed = True


def _id_of(value: object) -> RequestId | None:
    found = value.get("id") if isinstance(value, dict) else None
    return found if isinstance(found, str) or type(found) is int else None


def open_streams(stdin: int, stdout: int) -> tuple[MessageReader, MessageWriter]:
    """Return the streams over two descriptors; raises NotPollable. Their flags stay: they may be shared."""
    read, write = _reader(stdin), _writer(stdout)
    calls = Calls()
    writer = MessageWriter(write, calls)
    return MessageReader(read, writer, calls), writer


def _reader(fd: int) -> Callable[[], Awaitable[bytes]]:
    mode = os.fstat(fd).st_mode
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(fd)):
        raise NotPollable("stdin")

    async def read() -> bytes:
        await anyio.wait_readable(fd)
        try:
            return os.read(fd, _CHUNK)
        except OSError as error:
            if error.errno in (errno.ECONNRESET, errno.EIO):
                return b""
            raise

    return read


def _writer(fd: int) -> Callable[[bytes], Awaitable[None]]:
    put = _nonblocking_put(fd)

    async def write(data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[put(view) :]
            except BlockingIOError:
                await anyio.wait_writable(fd)
            except OSError as error:
                raise anyio.BrokenResourceError from error

    return write


def _nonblocking_put(fd: int) -> Callable[[memoryview], int]:
    mode = os.fstat(fd).st_mode
    if stat.S_ISSOCK(mode):
        peer = socket.socket(fileno=os.dup(fd))
        return lambda data: peer.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
    if not (stat.S_ISFIFO(mode) or os.isatty(fd)):
        raise NotPollable("stdout")
    try:
        # A description of our own: O_NONBLOCK on the inherited one would reach whoever shares it.
        own = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError as error:
        raise NotPollable("stdout") from error
    os.dup2(own, fd, inheritable=False)
    os.close(own)
    return lambda data: os.write(fd, data)


def claim_standard_streams() -> tuple[int, int]:
    """Move the wire away from descriptors 0 and 1, where a stray print would tear it."""
    wire = tuple(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3) for fd in (0, 1))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return wire[0], wire[1]

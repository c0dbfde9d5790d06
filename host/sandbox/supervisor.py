"""The process that everything in the sandbox is below, sockets into it, and programs that live in it."""

from __future__ import annotations

import array
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.lowlevel
from anyio import TypedAttributeSet, typed_attribute
from anyio.abc import ByteStream

from host.ports import SandboxFault
from shared.jsons import dump_bytes, loads
from shared.processes import Frames, framed

MAX_FRAME: Final = 32 << 20
ANSWER_TIMEOUT_S: Final = 30.0
CANCEL_TIMEOUT_S: Final = 10.0
_CHUNK: Final = 256 << 10
_ROOM: Final = socket.CMSG_LEN(array.array("i").itemsize)  # for one descriptor; more are dropped


class Disconnected(Exception):
    """The other side is gone, or spoke out of protocol."""


def encode(frame: Mapping[str, Any]) -> bytes:
    """Return a frame as bytes. Raises ``SandboxFault`` for what can't be one."""
    try:
        return framed(dump_bytes(frame), MAX_FRAME)
    except (ValueError, TypeError) as error:
        raise SandboxFault(f"the arguments can't be passed on: {error}") from None


def checked(answer: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an answer carries; what comes out of the sandbox is not trusted to have the right shape.

    Raises ``SandboxFault``.
    """
    content = answer.get("ok")
    if isinstance(content, dict):
        return content
    error, code = answer.get("error"), answer.get("code")
    if not isinstance(error, str):
        raise SandboxFault("the sandbox gave no valid answer")
    raise SandboxFault(error, code if isinstance(code, str) else "")


class Wire:
    """Frames over a socket pair, without blocking the event loop. One reader; writers take turns."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._frames = Frames(MAX_FRAME)
        self._arrived: deque[bytes] = deque()
        self._taken: list[int] = []
        self._writing = anyio.Lock()

    def close(self) -> None:
        """Close the socket; the other side takes that as the order to end."""
        self._socket.close()
        for descriptor in self.take():
            os.close(descriptor)

    def take(self) -> list[int]:
        """Return the descriptors that have come since, which are the caller's now."""
        taken, self._taken = self._taken, []
        return taken

    def shut_down(self) -> None:
        """Have whoever waits here, and the other side, see the end; to be closed afterwards."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def has_ended(self) -> bool:
        """Return whether the other side is gone, or said something though nobody asked."""
        if self._arrived:
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
        ``SandboxFault``.

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
        try:
            while not self._arrived:
                self._arrived.extend(self._frames.feed(await self._read()))
            frame = loads(self._arrived.popleft())
        except (ValueError, OSError) as error:
            raise Disconnected from error
        if not isinstance(frame, dict):
            raise Disconnected
        return frame

    async def _read(self) -> bytes:
        while True:
            try:
                data, ancillary, _, _ = self._socket.recvmsg(_CHUNK, _ROOM, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                await anyio.wait_readable(self._socket)
                continue
            for level, kind, content in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    self._taken += array.array("i", content)
            if not data:
                raise Disconnected
            return data


PROGRAM: Final = Path(__file__).parent / "worker" / "main.py"
END_TIMEOUT_S: Final = 8.0


class Supervisor:
    """One supervisor, and the directory of the private directories. Raises ``OSError`` if it can't start."""

    def __init__(self, path: str) -> None:
        """Start it: nothing inherited but its socket, and an environment without secrets but PATH."""
        self.temporary = tempfile.mkdtemp(prefix="picoclaw-")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            self.process = subprocess.Popen(  # noqa: S603 - our own file and interpreter
                [sys.executable, "-I", "-S", "-E", str(PROGRAM), str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={"LANG": "C.UTF-8", "PATH": path},
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
                cwd="/",
            )
        self.wire = Wire(ours)

    async def end(self) -> None:
        """Close the socket, wait for it to end what is below it, and clean up."""
        self.wire.close()
        await _wait(self.process)
        await anyio.to_thread.run_sync(_remove, self.temporary)


def _remove(directory: str) -> None:
    """Remove what the supervisor could not, having been killed; it removes everything itself when it ends."""
    with contextlib.suppress(OSError, RecursionError):
        Path(directory).chmod(0o700)
        shutil.rmtree(directory)


async def _wait(process: subprocess.Popen[bytes]) -> None:
    """Wait for a process without a thread (pidfd_open(2)); kill it when it takes too long."""
    if process.poll() is not None:
        return
    descriptor = os.pidfd_open(process.pid)
    try:
        with anyio.move_on_after(END_TIMEOUT_S):
            await anyio.wait_readable(descriptor)
        if process.poll() is None:
            process.kill()
            await anyio.wait_readable(descriptor)
            process.wait()
    finally:
        os.close(descriptor)


END_GRACE_S: Final = 0.25
"""How long a program may take to leave once its stdin is closed, before it is killed, in seconds."""
_PIECE: Final = 64 << 10


class Program(TypedAttributeSet):
    """What is known of a program besides its stream."""

    last_words: Callable[[], Awaitable[str]] = typed_attribute()
    """Returns the last line of its stderr, or why it did not start; "" if it goes on for END_GRACE_S."""


@asynccontextmanager
async def connected_program(attend: Callable[[list[int]], Awaitable[str]]) -> AsyncIterator[ByteStream]:
    """Yield a stream to the program that ``attend`` runs, on the stdin and stdout it is given, until it ends.

    It may leave by itself once its stdin is closed; else ``attend`` is cancelled. It returns the last words.
    """
    with _Pipes() as pipes:
        ended = pipes.ended

        async def attending(theirs: list[int]) -> None:
            try:
                pipes.said = await attend(theirs)
            finally:
                ended.set()

        async with anyio.create_task_group() as group:
            group.start_soon(attending, pipes.theirs)
            try:
                yield pipes
                await pipes.send_eof()
                with anyio.move_on_after(END_GRACE_S):
                    await ended.wait()
            finally:
                group.cancel_scope.cancel()


class _Pipes(ByteStream):
    """Two pipes as one stream, without threads. ``theirs``: the program's stdin and stdout, in that order."""

    def __init__(self) -> None:
        stdin, to_program = os.pipe2(os.O_CLOEXEC)
        from_program, stdout = os.pipe2(os.O_CLOEXEC)
        self.theirs = [stdin, stdout]
        self.ended = anyio.Event()
        self.said = ""
        self._ours = {"input": to_program, "output": from_program}
        for descriptor in self._ours.values():
            os.set_blocking(descriptor, False)

    def __enter__(self) -> _Pipes:
        return self

    def __exit__(self, *_: object) -> None:
        self._close("input", "output")
        while self.theirs:  # never handed over
            os.close(self.theirs.pop())

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """See ``Program``."""
        return {Program.last_words: lambda: self._last_words}

    async def _last_words(self) -> str:
        with anyio.move_on_after(END_GRACE_S):
            await self.ended.wait()
        return self.said

    async def receive(self, max_bytes: int = _PIECE) -> bytes:
        """Return what the program wrote. Raises ``EndOfStream``, ``ClosedResourceError``."""
        await anyio.lowlevel.checkpoint()
        while True:
            try:
                data = os.read(self._end("output"), max_bytes)
            except BlockingIOError:
                await anyio.wait_readable(self._end("output"))
                continue
            if not data:
                raise anyio.EndOfStream
            return data

    async def send(self, item: bytes) -> None:
        """Write to the program. Raises ``BrokenResourceError``, ``ClosedResourceError``."""
        await anyio.lowlevel.checkpoint()
        rest = memoryview(item)
        while rest:
            end = self._end("input")
            try:
                rest = rest[os.write(end, rest) :]
            except BlockingIOError:
                await anyio.wait_writable(end)
            except OSError as error:
                raise anyio.BrokenResourceError from error

    async def send_eof(self) -> None:
        """Close the program's stdin."""
        self._close("input")

    async def aclose(self) -> None:
        """Close both directions; the program itself is ended by leaving the context."""
        self._close("input", "output")

    def _end(self, name: str) -> int:
        if name not in self._ours:
            raise anyio.ClosedResourceError
        return self._ours[name]

    def _close(self, *names: str) -> None:
        for name in names:
            if (descriptor := self._ours.pop(name, None)) is not None:
                anyio.notify_closing(descriptor)
                os.close(descriptor)

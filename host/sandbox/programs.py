"""Programs that live longer than a call, with stdin and stdout for somebody to talk through."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio
import anyio.lowlevel
from anyio import TypedAttributeSet, typed_attribute
from anyio.abc import ByteStream

END_GRACE_S: Final = 0.25
"""How long a program may take to leave once its stdin is closed, before it is killed, in seconds."""
_CHUNK: Final = 64 << 10


class Program(TypedAttributeSet):
    """What is known of a program besides its stream."""

    last_words: Callable[[], Awaitable[str]] = typed_attribute()
    """Returns the last line of its stderr, or why it did not start; "" if it goes on for END_GRACE_S."""


@asynccontextmanager
async def connected(attend: Callable[[list[int]], Awaitable[str]]) -> AsyncIterator[ByteStream]:
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

    async def receive(self, max_bytes: int = _CHUNK) -> bytes:
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

"""What other servers say, unpacked as it comes, counted, and bounded before any of it becomes an object."""

from __future__ import annotations

import re
import zlib
from codecs import BOM_UTF8
from collections.abc import AsyncIterable, AsyncIterator, Callable
from typing import Any, Final, Protocol

import anyio
import anyio.lowlevel
import anyio.to_thread

from shared import jsons

MESSAGE_LIMIT: Final = 8 * 1024 * 1024
"""Longest message, in bytes."""
MOST_PARTS: Final = 30_000
"""Values, names and brackets of a message's JSON. So many don't fit into a result that is shown whole."""
MOST_IN_A_MINUTE: Final = 2000


class TooMuch(Exception):
    """The server says more than is listened to."""


class Listener:
    """Bounds what one server says before any of it becomes an object."""

    def __init__(self) -> None:
        self._heard = 0
        self._until = 0.0

    async def check(self, message: bytes | bytearray) -> None:
        """Let the others go on first; raises TooMuch."""
        await anyio.lowlevel.checkpoint()
        now = anyio.current_time()
        if now >= self._until:
            self._heard, self._until = 0, now + 60
        self._heard += 1
        if self._heard > MOST_IN_A_MINUTE or len(message) > MESSAGE_LIMIT:
            raise TooMuch("says too much")
        if len(message) <= MOST_PARTS:
            return
        if not await anyio.to_thread.run_sync(jsons.few, bytes(message), MOST_PARTS):
            raise TooMuch("says too many values at once")


async def messages(
    said: AsyncIterable[bytes], end: re.Pattern[bytes] | None, most: int = MESSAGE_LIMIT
) -> AsyncIterator[bytes]:
    """Yield whole messages up to ``end``, then what is left, each within bounds; raises TooMuch."""
    held, listener = bytearray(), Listener()
    async for chunk in said:
        looked = max(len(held) - 3, 0)
        held += chunk
        while end is not None and (found := end.search(held, looked)):
            message, looked = bytes(held[: found.end()]), 0
            del held[: found.end()]
            await listener.check(message)
            yield _readable(message)
        if len(held) > most:
            raise TooMuch("says too much")
    await listener.check(held)
    yield _readable(bytes(held))


_HALF: Final = re.compile(
    rb"\\u(?:[dD][89abAB]..(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB]..\\u)[dD][c-fC-F]..)"
)
"""Half of a surrogate pair, as JSON escapes it."""


def _readable(message: bytes) -> bytes:
    """Return JSON with U+FFFD for what is no character: a text that was cut within one may end so."""
    if rb"\u" in message:  # escaped backslashes stand aside meanwhile, as bytes that JSON doesn't have
        message = _HALF.sub(rb"\\ufffd", message.replace(rb"\\", b"\0\0")).replace(b"\0\0", rb"\\")
    return message.removeprefix(BOM_UTF8).decode("utf-8", "replace").encode()


ACCEPTED: Final = {"Accept-Encoding": "gzip"}
"""What a client that unpacks here asks for: the library would ask for more if more were installed."""
_PIECE: Final = 256 * 1024
_GZIP_OR_ZLIB: Final = 32 + zlib.MAX_WBITS
_KNOWN: Final = frozenset({"gzip", "x-gzip", "deflate"})


class Body(Protocol):
    """A response's stream, of any client."""

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    async def aclose(self) -> None: ...


async def unpacked(body: Body, encoding: str) -> AsyncIterator[bytes]:
    """Yield a body, unpacked in pieces of at most 256 KiB; raises TooMuch for what can't be unpacked."""
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        async for data in body:
            yield data
        return
    if encoding not in _KNOWN:
        raise TooMuch("answers compressed in a way that was not asked for")
    unpack = zlib.decompressobj(_GZIP_OR_ZLIB)
    async for data in body:
        while piece := _inflated(unpack, data):
            yield piece
            data = unpack.unconsumed_tail


def _inflated(unpack: zlib._Decompress, data: bytes) -> bytes:
    try:
        return unpack.decompress(data, _PIECE)
    except zlib.error:
        raise TooMuch("answers what can't be unpacked") from None


class Bounded:
    """A response's stream, read as ``pieces``, which end in TooMuch; a class of a library's own beside it.

    ``too_much``: the library's error for a body that can't be read. ``refuse`` hears why.
    """

    too_much: type[Exception]

    def __init__(
        self, body: Body, pieces: AsyncIterator[bytes], refuse: Callable[[str], object] = str
    ) -> None:
        self._body = body
        self._pieces = pieces
        self._refuse = refuse

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for piece in self._pieces:
                yield piece
        except TooMuch as error:
            self._refuse(str(error))
            raise self.too_much(str(error)) from None

    async def aclose(self) -> None:
        """Close the stream below."""
        await self._body.aclose()


def bound(response: Any, kind: type[Bounded], most: int) -> None:
    """Have a response of httpx or httpx2 read by ``kind``, at most ``most`` bytes of it (in a hook)."""
    pieces = unpacked(response.stream, response.headers.pop("content-encoding", ""))
    response.stream = kind(response.stream, _at_most(pieces, most))


async def _at_most(pieces: AsyncIterator[bytes], left: int) -> AsyncIterator[bytes]:
    async for piece in pieces:
        left -= len(piece)
        if left < 0:
            raise TooMuch("says too much")
        yield piece

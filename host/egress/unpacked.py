"""What comes over HTTP, unpacked as it comes and counted: the one bound of every client of the host's."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Callable
from typing import Any, Final, Protocol

from host.egress.listener import TooMuch

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

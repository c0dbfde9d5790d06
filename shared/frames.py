"""Frames over a stream: four bytes of length (big endian), then the body.

``host.sandbox.worker.frames`` speaks the same from inside the sandbox, where there is only the standard
library.
"""

from __future__ import annotations

import struct
from typing import Final

_LENGTH: Final = struct.Struct(">I")


def framed(body: bytes, most: int) -> bytes:
    """Return a body as a frame. Raises ``ValueError`` if it has more than ``most`` bytes."""
    if len(body) > most:
        raise ValueError(f"larger than {most} bytes")
    return _LENGTH.pack(len(body)) + body


class Frames:
    """Cuts what comes in into bodies of at most ``most`` bytes."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._data = bytearray()
        self._wanted = _LENGTH.size

    def feed(self, data: bytes) -> list[bytes]:
        """Take what came and return the bodies that are whole now. Raises ``ValueError`` for one too long."""
        self._data += data
        whole: list[bytes] = []
        while len(self._data) >= self._wanted:
            (length,) = _LENGTH.unpack_from(self._data)
            if length > self._most:
                raise ValueError(f"a frame of {length} bytes")
            end = _LENGTH.size + length
            if len(self._data) < end:
                self._wanted = end
                break
            whole.append(bytes(self._data[_LENGTH.size : end]))
            del self._data[:end]
            self._wanted = _LENGTH.size
        return whole

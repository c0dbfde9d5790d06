"""What processes need that hold secrets or own others; frames, in which they speak with each other.

A frame is four bytes of length (big endian), then the body. ``host.sandbox.worker.frames`` speaks the same
from inside the sandbox, where there is only the standard library.
"""

from __future__ import annotations

import struct
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from anyio.abc import Process

PR_SET_DUMPABLE: Final = 4


def not_dumpable() -> None:
    """Keep this process's memory and first environment from others: not dumpable, no core files.

    prctl(2), PR_SET_DUMPABLE: other processes of the user can't read /proc/PID/environ and mem, nor trace it.
    """
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        import ctypes

        if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl")


async def terminate(process: Process, within_s: float) -> None:
    """Return when the process has ended, by itself or killed after ``within_s``; not to be cancelled."""
    import anyio  # not at the top: `picoclaw supervise` lives without it

    with anyio.CancelScope(shield=True):
        with anyio.move_on_after(within_s):
            await process.wait()
        if process.returncode is None:
            process.kill()
            await process.wait()
        await process.aclose()


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

"""Frames between the processes, and the configuration: what the host decided, as the first frame says.

A frame is four bytes of length (big endian), then a JSON object in UTF-8. The other side may lie: lengths are
bounded and anything but an object ends the connection.
"""

from __future__ import annotations

import json
import os
import select
import socket
import struct
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

MAX_FRAME: Final = 32 << 20  # bytes; a written file of 16 MiB fits escaped
_HEADER: Final = struct.Struct(">I")
_DESCRIPTOR: Final = struct.Struct("i")
_CHUNK: Final = 256 << 10
_MOST_DESCRIPTORS: Final = 16  # in one message; the kernel ends a read behind each message that carries any

Frame = dict[str, Any]


class Closed(Exception):
    """The other side is gone, or spoke out of protocol."""


def encode(frame: Frame) -> bytes:
    """Return a frame as bytes. Raises ``ValueError`` when it is larger than the other side would take."""
    body = json.dumps(frame, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")
    if len(body) > MAX_FRAME:
        raise ValueError("frame too large")
    return _HEADER.pack(len(body)) + body


class Decoder:
    """Turns a byte stream into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """Take bytes, return the frames they complete. Raises ``Closed`` on anything out of protocol."""
        self._buffer += data
        frames: list[Frame] = []
        while len(self._buffer) >= _HEADER.size:
            (size,) = _HEADER.unpack_from(self._buffer)
            if size > MAX_FRAME:
                raise Closed("frame too large")
            if len(self._buffer) < _HEADER.size + size:
                break
            frames.append(_object(bytes(self._buffer[_HEADER.size : _HEADER.size + size])))
            del self._buffer[: _HEADER.size + size]
        return frames


def _object(body: bytes) -> Frame:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Closed("not JSON") from error
    if not isinstance(value, dict):
        raise Closed("not an object")
    return value


class Channel:
    """One end of a socket pair. ``receive`` and ``send`` wait; ``pull``, ``queue`` and ``flush`` never do.

    ``takes_descriptors``: accept descriptors that come along (only from whom we trust; the kernel drops them
    otherwise).
    """

    def __init__(self, connection: socket.socket, *, takes_descriptors: bool = False) -> None:
        connection.setblocking(True)
        self.socket = connection
        self.takes_descriptors = takes_descriptors
        self._descriptors: list[int] = []
        self._decoder = Decoder()
        self._arrived: list[Frame] = []
        self._outgoing = bytearray()

    def fileno(self) -> int:
        """Return the descriptor, for polling."""
        return self.socket.fileno()

    def close(self) -> None:
        """Close this end."""
        self.socket.close()

    def receive(self) -> Frame:
        """Wait for the next frame. Raises ``Closed`` at the end."""
        while not self._arrived:
            data = self._take(0)
            if not data:
                raise Closed("end of stream")
            self._arrived.extend(self._decoder.feed(data))
        return self._arrived.pop(0)

    def send(self, frame: Frame, descriptors: Sequence[int] = ()) -> None:
        """Send a frame, waiting for room; ``descriptors`` go along. Raises ``Closed``."""
        data = encode(frame)
        try:
            if descriptors:
                data = data[socket.send_fds(self.socket, [data], descriptors) :]
            if data:  # who has it all may be gone already
                self.socket.sendall(data)
        except OSError as error:
            raise Closed("end of stream") from error

    def pull(self) -> list[Frame]:
        """Return what has arrived so far. Raises ``Closed`` at the end."""
        try:
            data: bytes | None = self._take(socket.MSG_DONTWAIT)
        except BlockingIOError:
            data = None
        except OSError as error:
            raise Closed("connection lost") from error
        if data == b"":
            raise Closed("end of stream")
        frames = self._arrived + (self._decoder.feed(data) if data else [])
        self._arrived = []
        return frames

    def serve(self, events: int) -> list[Frame]:
        """Write, and return what has arrived, as the ``events`` of a poll allow. Raises ``Closed``."""
        if events & select.POLLOUT:
            self.flush()
        return self.pull() if events & (select.POLLIN | select.POLLHUP) else []

    def descriptors(self, count: int) -> list[int]:
        """Return the next ``count`` descriptors that came along; they are the caller's now."""
        taken, self._descriptors = self._descriptors[:count], self._descriptors[count:]
        return taken

    def _take(self, flags: int) -> bytes:
        if not self.takes_descriptors:
            return self.socket.recv(_CHUNK, flags)
        # not socket.recv_fds, which drops the flags
        room = socket.CMSG_SPACE(_MOST_DESCRIPTORS * _DESCRIPTOR.size)
        data, ancillary, _, _ = self.socket.recvmsg(_CHUNK, room, flags | socket.MSG_CMSG_CLOEXEC)
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                whole = len(content) - len(content) % _DESCRIPTOR.size
                self._descriptors += [number for (number,) in _DESCRIPTOR.iter_unpack(content[:whole])]
        return data

    def queue(self, frame: Frame, descriptors: Sequence[int] = ()) -> None:
        """Add a frame to what ``flush`` writes, and write what goes at once. Raises ``Closed``.

        ``descriptors`` go along; nothing may be pending then.
        """
        data = encode(frame)
        if descriptors:
            data = data[socket.send_fds(self.socket, [data], descriptors, socket.MSG_DONTWAIT) :]
        self._outgoing += data
        self.flush()

    def flush(self) -> None:
        """Write as much as the socket takes. Raises ``Closed``."""
        try:
            while self._outgoing:
                sent = self.socket.send(self._outgoing[:_CHUNK], socket.MSG_DONTWAIT)
                del self._outgoing[:sent]
        except BlockingIOError:
            return
        except OSError as error:
            raise Closed("connection lost") from error

    @property
    def pending(self) -> bool:
        """Whether ``flush`` still has something to write."""
        return bool(self._outgoing)


def close_all(descriptors: Iterable[int]) -> None:
    """Close descriptors."""
    for descriptor in descriptors:
        os.close(descriptor)


DEVICES: Final = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
HOME: Final = "home"  # in the private directory
STREAMS: Final = ("/dev/stdin", "/dev/stdout", "/dev/stderr")


class Config(NamedTuple):
    """The policy of the host and the identity that commands run under. Sizes in bytes.

    ``counted``, ``readable``, ``most_bytes``: see ``host.ports.Allowance``; empty for the operator's.
    ``page``: what holds the last count of these (``limits.quota``); ``is_full``: nothing is to be added.
    ``no_uids``: why principals can't have uids of their own.
    """

    restrict_to_workspace: bool
    allow_read_outside_workspace: bool
    read_paths: tuple[str, ...]
    write_paths: tuple[str, ...]
    skill_paths: tuple[str, ...]
    secret_paths: tuple[str, ...]
    allow_network: bool
    uid: int | None
    gid: int | None
    own_uid: bool
    skipped: tuple[str, ...]
    landlock_abi: int
    namespaces: bool
    inner_uid: int
    inner_gid: int
    temporary: str
    path: str
    time_zone: str
    processes: int
    memory: int
    data: int
    file_size: int
    open_files: int
    output: int
    temporary_bytes: int
    reaper_idle_s: float
    uid_processes: int
    no_uids: str = ""
    counted: tuple[str, ...] = ()
    readable: tuple[str, ...] = ()
    most_bytes: int = 0
    page: int = -1
    is_full: bool = False

    @property
    def kept(self) -> tuple[int, ...]:
        """What its processes hold open of the supervisor's."""
        return () if self.page < 0 else (self.page,)

    @property
    def is_open(self) -> bool:
        """Whether files outside the workspace are to be reachable."""
        return not self.restrict_to_workspace or self.allow_read_outside_workspace

    @property
    def covers(self) -> bool:
        """Whether everything has a name in a command's root, and mounts cover the secrets there."""
        return self.namespaces and self.is_open

    @classmethod
    def from_frame(cls, frame: dict[str, Any], **decided: Any) -> Config:
        """Build it from the host's frame and what the supervisor found out itself."""
        fields = {name: frame[name] for name in cls._fields if name in frame}
        lists = {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
        return cls(**{**fields, **lists, **decided})


class Place(NamedTuple):
    """Where one conversation works: the workspace and a private directory for HOME and TMPDIR.

    ``words``: names in the workspace that it may read and not change, as what they say is obeyed.
    """

    workspace: str
    temporary: str
    words: tuple[str, ...] = ()

    @property
    def home(self) -> str:
        """The private home directory, thrown away with the conversation."""
        return f"{self.temporary}/{HOME}"

"""For outside agents beside a running host: its warm zygote serves their pipes, so the SDK isn't imported.

Standard library only. Whoever may open the database may be a tool server for any conversation in it, so the
door asks for exactly that: a descriptor of the database, opened for writing.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from collections.abc import Iterator
from typing import Final

from mcp_server import birth
from mcp_server.identity import Identity

_ANSWER_SECONDS: Final = 2.0


def hand_over(identity: Identity) -> int | None:
    """Let the host's zygote serve descriptors 0, 1 and 2; return the exit status, None if nobody is there."""
    with contextlib.ExitStack() as stack:
        try:
            database = os.open(identity.db_path, os.O_RDWR | os.O_CLOEXEC)
            stack.callback(os.close, database)
            door = stack.enter_context(_door(identity))
        except OSError:
            return None
        wanted = birth.Birth(identity.conversation_id, identity.is_main, identity.timezone)
        door.settimeout(_ANSWER_SECONDS)
        try:
            socket.send_fds(door, [birth.encode(wanted)], [0, 1, 2, database])
            if door.recv(birth.PACKET_LIMIT) != birth.SERVED:
                return None
        except OSError:
            return None
        door.settimeout(None)
        return _wait(door)


@contextlib.contextmanager
def _door(identity: Identity) -> Iterator[socket.socket]:
    database = identity.db_path.absolute()
    directory = birth.open_directory(database)
    try:
        with birth.packet_socket() as door:
            door.settimeout(_ANSWER_SECONDS)
            door.connect(birth.door_address(directory, database))
            yield door
    finally:
        os.close(directory)


def _wait(door: socket.socket) -> int:
    """Stay for as long as the session lasts: the client judges the server by this process."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    # The session has copies; ours would keep the client's pipes open after the session ended.
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1):
        os.dup2(nothing, fd)
    try:
        status = door.recv(birth.PACKET_LIMIT)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return status[0] if status else 1

"""How a session is asked for: one packet that carries the identity and the descriptors (unix(7), SCM_RIGHTS).

Standard library only, because the shim's start-up time is its whole point.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, get_type_hints

from mcp_server.identity import Identity

PACKET_LIMIT: Final = 4096
ANSWER_SECONDS: Final = 2.0
OUTSIDE_FDS: Final = 4
"""stdin, stdout, stderr, and the database opened for writing, which proves the right to be served."""
SERVED: Final = b"served"
"""What the zygote answers to a shim once the session has its descriptors; then follows the exit status."""


@dataclass(frozen=True, slots=True)
class SessionRequest:
    """Whom one session is to act for; where the store is, is the zygote's own to say.

    ``access``: how the session reaches a store that several hosts share; ``token_id``: the token whose end is
    the end of its writing. Both come from the host alone. ``to_host``: no
    session is wanted; the first descriptor is a line to the host, and the rest says who speaks.
    """

    conversation_id: str
    is_main: bool
    timezone: str
    access: str | None = None
    token_id: str | None = None
    principal_id: str = "operator"
    to_host: bool = False


class BadRequest(Exception):
    """The packet asks for no session."""


def encode(request: SessionRequest) -> bytes:
    """Return the packet."""
    return json.dumps({name: getattr(request, name) for name in SessionRequest.__slots__}).encode()


def decode(packet: bytes) -> SessionRequest:
    """Return the request; raises BadRequest."""
    try:
        request = SessionRequest(**json.loads(packet))
    except (ValueError, TypeError) as error:
        raise BadRequest from error
    if not all(isinstance(getattr(request, name), kind) for name, kind in _KINDS.items()):
        raise BadRequest
    return request


_KINDS: Final = get_type_hints(SessionRequest)


def door_name(database: Path) -> str:
    """Return the name of the zygote's socket, beside the database it serves."""
    return f"{database.name}.mcp"


def door_address(directory: int, database: Path) -> str:
    """Return an address for the door that has room for any path (unix(7) allows 107 bytes)."""
    return f"/proc/self/fd/{directory}/{door_name(database)}"


def packet_socket() -> socket.socket:
    """Return a socket of the kind the door speaks: whole packets."""
    return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def hand_over(identity: Identity, fds: Sequence[int], *, to_host: bool = False) -> socket.socket:
    """Give three descriptors to the zygote of a running host; return the socket by which it tells the end.

    The database, opened for writing, goes along as proof. Raises OSError where nobody takes them.
    """
    database = os.open(identity.db_path, os.O_RDWR | os.O_CLOEXEC)
    directory = open_directory(identity.db_path.absolute())
    door = packet_socket()
    wanted = SessionRequest(
        identity.conversation_id,
        identity.is_main,
        identity.timezone,
        principal_id=identity.principal_id,
        to_host=to_host,
    )
    try:
        door.settimeout(ANSWER_SECONDS)
        door.connect(door_address(directory, identity.db_path.absolute()))
        socket.send_fds(door, [encode(wanted)], [*fds, database])
        if door.recv(PACKET_LIMIT) != SERVED:
            raise ConnectionRefusedError
    except BaseException:
        door.close()
        raise
    finally:
        os.close(directory)
        os.close(database)
    door.settimeout(None)
    return door


def open_directory(database: Path) -> int:
    """Return a descriptor of the directory the database is in."""
    return os.open(database.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

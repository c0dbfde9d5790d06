"""Whom a tool server acts for, and how one is asked for.

The identity is read once, from the environment at birth, and from nothing else. A session is asked for by one
packet that carries it and the descriptors (unix(7), SCM_RIGHTS). Standard library only, because the shim's
start-up time is its whole point.
"""

import json
import os
import re
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple, get_type_hints

CONVERSATION_ID: Final = re.compile(r"(?:prin-[0-9a-f-]{36}\+)?[A-Za-z0-9][A-Za-z0-9._:@+-]{0,199}")
PRINCIPAL_ID: Final = re.compile(r"operator|prin-[0-9a-f-]{36}")

DEFAULT_TASK_QUOTA: Final = 100


class NoIdentity(Exception):
    """The environment doesn't say whom to act for; the sentence says what is missing."""


class Identity(NamedTuple):
    """The conversation a tool server acts for, where its store is, and its zone ("": the machine's).

    ``principal_id``: whose the conversation is. ``access``: how to reach a store that several hosts share, as
    the host made it for this conversation. ``token_id``: the token by which somebody asked for this server
    over HTTP.
    """

    conversation_id: str
    is_main: bool
    db_path: Path
    store_dir: Path | None
    timezone: str
    task_quota: int
    access: str | None = None
    token_id: str | None = None
    principal_id: str = "operator"

    def __repr__(self) -> str:
        return f"Identity({self.conversation_id!r})"  # without the access, which is a secret


def identity_of(environment: Mapping[str, str]) -> Identity:
    """Return the identity; raises NoIdentity. ``NANOCLAW_*`` names count where ``PICOCLAW_*`` is unset."""
    conversation_id = _value(environment, "CONVERSATION_ID")
    if not conversation_id:
        raise NoIdentity(
            "PICOCLAW_CONVERSATION_ID is not set: a tool server acts for exactly one conversation, "
            "which its environment names."
        )
    if not CONVERSATION_ID.fullmatch(conversation_id):
        raise NoIdentity(
            "PICOCLAW_CONVERSATION_ID must begin with a letter or digit, and have at most 200 letters, "
            "digits and . _ : @ + - characters."
        )
    principal_id = _value(environment, "PRINCIPAL_ID") or "operator"
    if not PRINCIPAL_ID.fullmatch(principal_id):
        raise NoIdentity("PICOCLAW_PRINCIPAL_ID must be operator or an id such as prin-<uuid>.")
    db_path = _value(environment, "DB_PATH")
    if not db_path:
        raise NoIdentity("PICOCLAW_DB_PATH is not set: the path of the host's runtime database is needed.")
    store_dir = _value(environment, "STORE_DIR")
    return Identity(
        conversation_id=conversation_id,
        is_main=_value(environment, "IS_MAIN") == "1",
        db_path=Path(db_path),
        store_dir=Path(store_dir) if store_dir else None,
        timezone=environment.get("TZ") or environment.get("TIMEZONE") or "",
        task_quota=_task_quota(environment),
        principal_id=principal_id,
    )


def _task_quota(environment: Mapping[str, str]) -> int:
    text = environment.get("MAX_TASKS_PER_CONVERSATION", "") or str(DEFAULT_TASK_QUOTA)
    if not text.isdecimal():
        raise NoIdentity("MAX_TASKS_PER_CONVERSATION must be a whole number.")
    return int(text)


def _value(environment: Mapping[str, str], name: str) -> str:
    return environment.get(f"PICOCLAW_{name}") or environment.get(f"NANOCLAW_{name}", "")


PACKET_LIMIT: Final = 4096
ANSWER_SECONDS: Final = 2.0
OUTSIDE_FDS: Final = 4
"""stdin, stdout, stderr, and the database opened for writing, which proves the right to be served."""
SERVED: Final = b"served"
"""What the zygote answers to a shim once the session has its descriptors; then follows the exit status."""


class SessionRequest(NamedTuple):
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
    return json.dumps(request._asdict()).encode()


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

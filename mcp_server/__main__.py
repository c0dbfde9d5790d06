"""``python -m mcp_server``: the tool server for one conversation, on stdin and stdout.

Beside a running host it is served by the host's warm zygote; alone it imports everything itself.
"""

import os
import signal
import socket
import sys

from mcp_server import session_request
from mcp_server.session_request import Identity, NoIdentity, identity_of
from shared.store import holds_store


def hand_over(identity: Identity) -> int | None:
    """Let the host's zygote serve descriptors 0, 1 and 2; return the exit status, None if nobody is there."""
    try:
        door = session_request.hand_over(identity, (0, 1, 2))
    except OSError:
        return None
    with door:
        return _wait(door)


def _wait(door: socket.socket) -> int:
    """Stay for as long as the session lasts: the client judges the server by this process."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    # The session has copies; ours would keep the client's pipes open after the session ended.
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1):
        os.dup2(nothing, fd)
    try:
        status = door.recv(session_request.PACKET_LIMIT)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return status[0] if status else 1


def _refuse(sentence: str, status: int) -> int:
    print(f"picoclaw tool server: {sentence}", file=sys.stderr)  # noqa: T201 - for the person who set it up
    return status


def main() -> int:
    """Serve until stdin ends; return the exit status (2: the environment names no conversation)."""
    os.environ["PYDANTIC_DISABLE_PLUGINS"] = "__all__"  # they would see what is validated
    try:
        identity = identity_of(os.environ)
    except NoIdentity as error:
        return _refuse(str(error), 2)
    status = hand_over(identity)
    if status is not None:
        return status
    if not holds_store(identity.db_path, identity.store_dir):
        # In a store of its own, messages would be sent to nobody.
        return _refuse(
            f"PICOCLAW_DB_PATH: there is no store at {identity.db_path.absolute()}; it must be the "
            "LOCAL_DB_PATH of a host that was started before.",
            1,
        )
    # Only now: this import takes half a second.
    from mcp_server.session import run_session

    return run_session(identity, asks=True)


if __name__ == "__main__":
    sys.exit(main())

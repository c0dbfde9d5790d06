"""``python -m mcp_server``: the tool server for one conversation, on stdin and stdout.

Beside a running host it is served by the host's warm zygote; alone it imports everything itself.
"""

from __future__ import annotations

import os
import sys

from mcp_server.identity import NoIdentity, identity_of
from mcp_server.shim import hand_over


def main() -> int:
    """Serve until stdin ends; return the exit status (2: the environment names no conversation)."""
    try:
        identity = identity_of(os.environ)
    except NoIdentity as error:
        print(f"picoclaw tool server: {error}", file=sys.stderr)  # noqa: T201 - read by the person who set it up
        return 2
    status = hand_over(identity)
    if status is not None:
        return status
    # Only now: this import takes half a second.
    from mcp_server.session import run_session

    return run_session(identity)


if __name__ == "__main__":
    sys.exit(main())

"""A short session on a throw-away database: what is loaded or built at first use is there before a fork."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import Any, Final

from mcp_server.identity import DEFAULT_TASK_QUOTA, Identity
from mcp_server.session import run_session
from shared import jsons

_HELLO: Final = {
    "protocolVersion": "2025-11-25",
    "capabilities": {},
    "clientInfo": {"name": "rehearsal", "version": "0"},
}
_TASK: Final = {"prompt": "rehearse", "schedule_type": "interval", "schedule_value": "3600000"}
_SCRIPT: Final[tuple[dict[str, Any], ...]] = (
    {"id": 1, "method": "initialize", "params": _HELLO},
    {"method": "notifications/initialized"},
    {"id": 2, "method": "tools/list"},
    {"id": 3, "method": "tools/call", "params": {"name": "send_message", "arguments": {"text": "x"}}},
    {"id": 4, "method": "tools/call", "params": {"name": "schedule_task", "arguments": _TASK}},
    {"id": 5, "method": "tools/call", "params": {"name": "list_tasks"}},
    {"id": 6, "method": "resources/read", "params": {"uri": "picoclaw://conversation"}},
)


def rehearse(timezone: str) -> None:
    """Play a session to its end. Without a place for temporary files nothing happens but a slower start."""
    with contextlib.suppress(OSError), tempfile.TemporaryDirectory(prefix="pico-rehearsal-") as directory:
        _play(Identity("rehearsal", True, Path(directory) / "store.db", None, timezone, DEFAULT_TASK_QUOTA))


def _play(identity: Identity) -> None:
    script = b"".join(jsons.dump_bytes({"jsonrpc": "2.0", **line}) + b"\n" for line in _SCRIPT)
    # Both fit into a pipe's buffer (64 KiB, pipe(7)), so nobody has to be at the other end.
    heard, said = os.pipe2(os.O_CLOEXEC), os.pipe2(os.O_CLOEXEC)
    try:
        os.write(heard[1], script)
        os.close(heard[1])
        run_session(identity, wire=(heard[0], said[1]))
    finally:
        for fd in (heard[0], *said):
            os.close(fd)

"""Everything that a session would load or build for itself, done once before the first fork."""

from __future__ import annotations

import contextlib
import gc
import os
import tempfile
import threading
from pathlib import Path
from typing import Any, Final

from mcp_server.identity import DEFAULT_TASK_QUOTA, Identity
from mcp_server.session import program_version, run_session
from shared import jsons
from shared.store import warm_shared_store
from shared.tool_contract import tool_declarations

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


def warm() -> None:
    """Fill the caches every session would fill again; takes about half a second and 45 MiB."""
    for is_main in (False, True):
        for tool in tool_declarations(is_main=is_main).values():
            _ = tool.input_schema
    program_version()
    rehearse(os.environ.get("TZ") or "UTC")
    if os.environ.get("PICOCLAW_SHARED_STORE"):
        warm_shared_store()
    if threading.active_count() > 1:
        raise RuntimeError("a thread outlived the rehearsal; a fork would not be safe")
    gc.collect()
    # Frozen objects are not visited, so their pages stay shared with the sessions.
    gc.freeze()

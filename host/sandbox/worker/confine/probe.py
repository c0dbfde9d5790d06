"""The start-up self-test: the forbidden things are tried for real, in a command's confinement, on canaries.

Nothing is believed because a call returned zero: a layer holds when what it should stop was stopped.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from .. import syscalls
from ..config import Config
from ..frames import Frame
from . import grants, namespaces
from .workspaces import Places

CANARY: Final = "canary"
CONVERSATION: Final = "start-up self-test"
TIMEOUT_MS: Final = 5000
_PTRACE_TRACEME: Final = 0  # ptrace(2)
_BASIC: Final = ("no_new_privileges", "capabilities", "system_calls", "network_closed")
_FULL: Final = ("files", "processes", "metadata")
_PRIVATE: Final = ("private_root", "own_processes", "own_ipc", "own_terminals", "own_network")
NAMESPACES: Final = 3  # the level


def request(config: Config, places: Places, workspace: str, port: int) -> Frame:
    """Lay out the canaries and return the request that a reaper runs; ``port``: where somebody listens."""
    outside = f"{config.temporary}/outside"
    with contextlib.suppress(FileExistsError):
        os.mkdir(outside, 0o755)
    Path(outside, "secret").write_text(CANARY)
    os.chmod(f"{outside}/secret", 0o644)
    place = places.of(CONVERSATION, workspace)
    return {
        "command": "",
        "timeout_ms": TIMEOUT_MS,
        "workspace": place.workspace,
        "temporary": place.temporary,
        "probe": {
            "outside": outside,
            "supervisor": os.getpid(),
            "port": port,
            "network": config.allow_network,
            "namespaces": namespaces.identities() if config.namespaces else None,
            "covers": config.covers,
        },
    }


def attempts(facts: dict[str, Any], temporary: str) -> bytes:
    """Run inside the confinement: try everything and return, as JSON, what was stopped."""
    outside, supervisor = facts["outside"], facts["supervisor"]
    held = {
        "no_new_privileges": _status("NoNewPrivs") == "1",
        "capabilities": all(
            int(_status(f"Cap{kind}") or "1", 16) == 0 for kind in ("Inh", "Prm", "Eff", "Amb")
        ),
        "system_calls": _status("Seccomp") == "2" and _stopped(_ptrace) and _stopped(_datagram_pair),
        "network_closed": facts["network"] or _stopped(lambda: _connect(facts["port"])),
        "files": _stopped(lambda: _read(f"{outside}/secret"))
        and _stopped(lambda: Path(outside, "new").write_text("x"))
        and not _stopped(lambda: Path(temporary, "probe").write_text("x")),
        "processes": _stopped(lambda: _read(f"/proc/{supervisor}/environ")),
        "signals": _stopped(lambda: os.kill(supervisor, 0)),
        "metadata": _stopped(lambda: os.chmod(f"{outside}/secret", 0o600))
        and _stopped(lambda: os.utime(f"{outside}/secret", (1, 1))),
    }
    if facts["namespaces"] is not None:
        held |= _private(facts)
    return json.dumps(held).encode()


def _private(facts: dict[str, Any]) -> dict[str, bool]:
    """Try the namespaces: what is outside has no name here, and what is private works."""
    outer, inner = facts["namespaces"], namespaces.identities()
    neighbours = {int(name) for name in os.listdir("/proc") if name.isdigit()}
    return {
        "private_root": not os.path.lexists(facts["outside"])
        and (facts["covers"] or _stopped(lambda: os.utime("/usr"))),
        "own_processes": inner["pid"] != outer["pid"] and neighbours == {1, os.getpid()},
        "own_ipc": inner["ipc"] != outer["ipc"] and not _stopped(_use_shared_memory),
        "own_terminals": not _stopped(_open_terminal),
        "own_network": bool(facts["network"]) or inner["net"] != outer["net"],
    }


def _use_shared_memory() -> None:
    Path(grants.SHARED_MEMORY, "probe").write_text("x")


def _open_terminal() -> None:
    for end in os.openpty():
        os.close(end)


def _connect(port: int) -> None:
    with socket.socket() as stream:
        stream.connect(("127.0.0.1", port))


def _stopped(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except OSError:
        return True
    return False


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(16)


def _ptrace() -> None:
    syscalls.call("ptrace", _PTRACE_TRACEME, 0, 0, 0)


def _datagram_pair() -> None:
    for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM):
        end.close()


def _status(name: str) -> str:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return line.split()[1]
    return ""


def judge(config: Config, answer: Frame) -> Frame:
    """Turn the reaper's answer into level, layers and what is missing, beside who commands run as."""
    whose = {
        "landlock_abi": config.landlock_abi,
        "uid": config.inner_uid,
        "skipped": list(config.skipped),
        "no_uids": config.no_uids,
    }
    try:
        layers: dict[str, bool] = json.loads(answer["output"])
    except (KeyError, ValueError):
        fault = (
            answer.get("fault") or f"the self-test ended with {answer.get('ended')}: {answer.get('output')!r}"
        )
        return {**whose, "level": 0, "layers": {}, "missing": [str(fault)[:500]]}
    layers["signal_scope"] = bool(answer.get("scoped"))
    layers["own_uid"] = config.own_uid
    layers["landlock"] = bool(config.landlock_abi)
    level = 1 if all(layers[name] for name in _BASIC) else 0
    if level and all(layers[name] for name in _FULL):
        level = 2
    if level == 2 and config.namespaces and all(layers[name] for name in _PRIVATE):
        level = NAMESPACES
    missing = [name for name, held in layers.items() if not held]
    return {**whose, "level": level, "layers": layers, "missing": missing}

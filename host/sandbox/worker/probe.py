"""The start-up self-test: the forbidden things are tried for real, in a command's confinement, on canaries.

Nothing is believed because a call returned zero: a layer holds when what it should stop was stopped.
"""

# Descriptors and raw paths on purpose: pathlib can't work relative to a directory that is held open.
# ruff: noqa: PTH101, PTH102, PTH123

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from . import syscall_table, syscalls
from .config import Config
from .frames import Frame
from .places import Places

CANARY: Final = "canary"
CONVERSATION: Final = "start-up self-test"
TIMEOUT_MS: Final = 5000
_PTRACE_TRACEME: Final = 0  # ptrace(2)
_BASIC: Final = ("no_new_privileges", "capabilities", "system_calls", "network_closed")
_FULL: Final = ("files", "processes", "metadata")


def request(config: Config, places: Places, workspace: str) -> Frame:
    """Lay out the canaries and return the request that a reaper runs."""
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
        "probe": {"outside": outside, "supervisor": os.getpid(), "network": config.allow_network},
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
        "network_closed": facts["network"] or _stopped(lambda: socket.socket().close()),
        "files": _stopped(lambda: _read(f"{outside}/secret"))
        and _stopped(lambda: Path(outside, "new").write_text("x"))
        and not _stopped(lambda: Path(temporary, "probe").write_text("x")),
        "processes": _stopped(lambda: _read(f"/proc/{supervisor}/environ")),
        "signals": _stopped(lambda: os.kill(supervisor, 0)),
        "metadata": _stopped(lambda: os.chmod(f"{outside}/secret", 0o600))
        and _stopped(lambda: os.utime(f"{outside}/secret", (1, 1))),
    }
    return json.dumps(held).encode()


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
    number = syscall_table.number("ptrace")
    assert number is not None  # noqa: S101 - both architectures have it
    syscalls.call(number, _PTRACE_TRACEME, 0, 0, 0)


def _datagram_pair() -> None:
    for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM):
        end.close()


def _status(name: str) -> str:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return line.split()[1]
    return ""


def judge(config: Config, answer: Frame) -> Frame:
    """Turn the reaper's answer into level, layers and what is missing."""
    try:
        layers: dict[str, bool] = json.loads(answer["output"])
    except (KeyError, ValueError):
        fault = (
            answer.get("fault") or f"the self-test ended with {answer.get('ended')}: {answer.get('output')!r}"
        )
        return {"level": 0, "abi": config.landlock_abi, "layers": {}, "missing": [str(fault)[:500]]}
    layers["signal_scope"] = bool(answer.get("scoped"))
    layers["own_uid"] = config.own_uid
    level = 1 if all(layers[name] for name in _BASIC) else 0
    if level and all(layers[name] for name in _FULL):
        level = 2
    missing = [name for name, held in layers.items() if not held]
    return {"level": level, "abi": config.landlock_abi, "layers": layers, "missing": missing}

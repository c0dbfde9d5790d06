"""What the sandbox costs: a command over a bare spawn, a file read, memory, a big host."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import psutil

from benchmarks.turns import pss
from host.sandbox.client import Sandbox
from host.sandbox.policy import SandboxPolicy
from host.tools.files_and_commands import SandboxToolset
from tests.sandbox.opened import toolset

COMMANDS, READS = 60, 300
BALLAST = 1 << 30
WORKERS = 50


async def main() -> dict[str, float]:
    """Return figures in milliseconds and MiB; names end in the unit."""
    root = Path(tempfile.mkdtemp(prefix="bench-"))
    root.chmod(0o755)
    workspace = root / "ws"
    workspace.mkdir()
    (workspace / "note.txt").write_text("line\n" * 40)
    try:
        async with Sandbox(SandboxPolicy(workspace=workspace)) as sandbox:
            await sandbox.ready()
            return await _figures(sandbox)
    finally:
        shutil.rmtree(root, ignore_errors=True)


async def _figures(sandbox: Sandbox) -> dict[str, float]:
    tools = toolset(sandbox, "bench")
    bare = _bare_spawn()
    command = await _median(lambda: tools.call("exec", {"command": "true"}), COMMANDS)
    read = await _median(lambda: tools.call("read_file", {"path": "note.txt"}), READS)
    ballast = bytearray(BALLAST)
    ballast[::4096] = b"x" * len(ballast[::4096])
    beside = await _median(lambda: tools.call("exec", {"command": "true"}), COMMANDS)
    del ballast
    return {
        "bare_spawn_ms": bare,
        "exec_ms": command,
        "exec_over_bare_ms": command - bare,
        "exec_beside_1_gib_ms": beside,
        "read_file_ms": read,
        "exec_eight_at_once_per_second": await _parallel(sandbox),
        "worker_pss_mib": await _worker_memory(sandbox),
    }


def _bare_spawn() -> float:
    times = []
    for _ in range(COMMANDS):
        started = time.perf_counter()
        subprocess.run(["/bin/bash", "-c", "true"], env={}, capture_output=True, check=True)
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1000


async def _median(call: Callable[[], Awaitable[object]], times: int) -> float:
    await call()
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        await call()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken) * 1000


async def _parallel(sandbox: Sandbox) -> float:
    each = 20

    async def caller(tools: SandboxToolset) -> None:
        for _ in range(each):
            await tools.call("exec", {"command": "true"})

    started = time.perf_counter()
    async with anyio.create_task_group() as group:
        for number in range(8):
            group.start_soon(caller, toolset(sandbox, f"bench-{number}"))
    return 8 * each / (time.perf_counter() - started)


async def _worker_memory(sandbox: Sandbox) -> float:
    """Start many workers and divide what they added: what one more conversation costs."""
    before = _pss()
    for number in range(WORKERS):
        await toolset(sandbox, f"many-{number}").call("read_file", {"path": "note.txt"})
    return (_pss() - before) / WORKERS


def _pss() -> float:
    return sum(pss(process) for process in psutil.Process().children(recursive=True)) / (1 << 20)


if __name__ == "__main__":
    for name, value in anyio.run(main).items():
        print(f"{name:36} {value:8.2f}")

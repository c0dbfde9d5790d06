"""From nothing to the first answer: what a start of the image's main process is made of, in milliseconds.

The container engine's own part is left out. ``python -m benchmarks cold_start``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Final

import httpx2

from tests.running import HostProcess, new_host

ROUNDS: Final = 5
MESSAGES: Final = 2_000
BIN: Final = Path(sys.executable).parent
IMAGE: Final = {"STOP_WAIT_SECONDS": "20", "TICK": "false", "TICK_SECONDS": "60"}


async def main() -> dict[str, float]:
    """Start it again and again; return medians."""
    figures = {
        "import of supervisord, ms": _import("host.cli.supervise"),
        "import of the host, ms": _import("host.app"),
    }
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        figures |= _rounds("empty volumes", [root / str(number) for number in range(ROUNDS)])
        full = root / "full"
        _fill(full)
        figures |= _rounds(f"{MESSAGES} messages to restore", [full] * ROUNDS)
    return figures


def _import(module: str) -> float:
    """Return what importing it takes, less the interpreter's own start."""
    return _python(f"import {module}") - _python("pass")


def _python(script: str) -> float:
    def once() -> float:
        started = time.perf_counter()
        subprocess.run([sys.executable, "-P", "-c", script], check=True)
        return (time.perf_counter() - started) * 1000

    return median(once() for _ in range(ROUNDS))


def _container(root: Path) -> HostProcess:
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    container = new_host(root, None, {**IMAGE, "PATH": path})
    config = Path(__file__).parents[1] / "supervisord.conf"
    container.command = (str(BIN / "picoclaw"), "supervise", "--config", str(config))
    return container


def _rounds(name: str, roots: list[Path]) -> dict[str, float]:
    starts, firsts, seconds = zip(*(_round(root) for root in roots), strict=True)
    return {
        f"{name}: start to /ready, ms": median(starts),
        f"{name}: first turn, ms": median(firsts),
        f"{name}: second turn, ms": median(seconds),
    }


def _round(root: Path) -> tuple[float, float, float]:
    container = _container(root)
    # What the volume doesn't hold is gone in a new container.
    (root / "local/picoclaw.db").unlink(missing_ok=True)
    started = time.perf_counter()
    container.start()
    ready = time.perf_counter()
    with container.client() as client:
        first, second = _turn(client), _turn(client)
    container.stop()
    return (ready - started) * 1000, first, second


def _turn(client: httpx2.Client) -> float:
    started = time.perf_counter()
    assert client.post("/chat", json={"message": "hello"}).status_code == 200
    return (time.perf_counter() - started) * 1000


def _fill(root: Path) -> None:
    container = _container(root).start()
    with container.client() as client:
        for _ in range(MESSAGES // 2):
            client.post("/chat", json={"message": "hello " * 100})
    container.stop()

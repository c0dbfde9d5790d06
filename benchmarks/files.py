"""Files up and down: how fast a gigabyte goes through, in how much memory, and what chats notice of uploads.

The floor is the same bytes through a socket from one file to another, in the same run.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import anyio
import httpx2
import psutil

from benchmarks.turns import HEADERS, percentiles
from tests.running import HostProcess, new_host, running_model

MIB: Final = 1 << 20
LARGE: Final = 1024 * MIB
ROUNDS: Final = 4
WARM: Final = 2
"""Rounds after which the host's memory is watched."""
UPLOADS: Final = 100
UPLOAD: Final = 4 * MIB
CHATS: Final = 8
TURNS: Final = 40
"""Of each chat."""


async def main() -> dict[str, float]:
    """Return the figures; times in milliseconds, memory in MiB, rates in MiB a second."""
    with tempfile.TemporaryDirectory() as root, running_model() as model:
        host = new_host(Path(root) / "host", model.url, {"LOG_LEVEL": "warning"}).start()
        try:
            figures = await asyncio.to_thread(large, host, Path(root))
            return figures | await beside_chats(host, Path(root))
        finally:
            host.stop()


def large(host: HostProcess, root: Path) -> dict[str, float]:
    """Send a gigabyte and fetch it, in turn with the floor: a busy machine is busy for all three."""
    assert host.process is not None
    memory = Memory(psutil.Process(host.process.pid))
    source, block = root / "large", os.urandom(MIB)
    with source.open("wb") as file:
        for _ in range(LARGE // MIB):
            file.write(block)
    floor = up = down = 0.0
    with memory:
        for number in range(ROUNDS):
            floor += through_a_socket(source, root / "copy")
            up += timed(lambda: curl(host, "-T", str(source), to="large"))
            down += timed(lambda: curl(host, to="large"))
            if number < WARM:
                memory.begin()
    whole = ROUNDS * LARGE / MIB
    return {
        "1 GiB through a socket from file to file": whole / floor,
        "1 GiB up": whole / up,
        "1 GiB up, of the floor": floor / up,
        "1 GiB down": whole / down,
        "1 GiB down, of the floor": floor / down,
        "memory of the host beyond what it had (MiB)": memory.most / MIB,
    }


def curl(host: HostProcess, *words: str, to: str) -> None:
    """Have another process move a file: this one would be in the way."""
    head = ("-fsS", "-o", "/dev/null", "-H", f"Authorization: {HEADERS['Authorization']}")
    subprocess.run(["curl", *head, *words, f"{host.url}/chat/main/files/{to}"], check=True)


def timed(work: Callable[[], None]) -> float:
    """Return the seconds that something takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


class Memory:
    """Watches the memory of a process from a thread."""

    def __init__(self, process: psutil.Process) -> None:
        self._process = process
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._before = process.memory_info().rss
        self.most = 0

    def begin(self) -> None:
        """Count from here."""
        self._before, self.most = self._process.memory_info().rss, 0

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.05):
            self.most = max(self.most, self._process.memory_info().rss - self._before)


def through_a_socket(source: Path, target: Path) -> float:
    """Return the seconds that it takes to copy a file through a socket, with fsync."""
    one, other = socket.socketpair()

    def send() -> None:
        with source.open("rb") as file, one:
            while piece := file.read(256 << 10):
                one.sendall(piece)

    sender = threading.Thread(target=send)
    started = time.perf_counter()
    sender.start()
    with target.open("wb", buffering=0) as file, other:
        while piece := other.recv(256 << 10):
            file.write(piece)
        os.fsync(file.fileno())
    sender.join()
    return time.perf_counter() - started


async def beside_chats(host: HostProcess, root: Path) -> dict[str, float]:
    """Measure turns of some chats alone, and beside uploads that all begin at once."""
    async with httpx2.AsyncClient(base_url=host.url, headers=HEADERS, timeout=120) as client:
        await asyncio.gather(*(chat(client, 5) for _ in range(CHATS)))
        alone = percentiles([took for each in await chats(client) for took in each])
        async with uploading(host, root):
            beside = percentiles([took for each in await chats(client) for took in each])
    return {
        f"{CHATS} chats: turn (ms p99)": alone[1],
        f"{CHATS} chats beside {UPLOADS} uploads at once: turn (ms p99)": beside[1],
        "ratio": beside[1] / alone[1],
    }


async def chats(client: httpx2.AsyncClient) -> list[list[float]]:
    return await asyncio.gather(*(chat(client, TURNS) for _ in range(CHATS)))


async def chat(client: httpx2.AsyncClient, turns: int) -> list[float]:
    """Return how long each turn took."""
    conversation: str | None = None
    found: list[float] = []
    for _ in range(turns):
        started = time.perf_counter()
        answer = await client.post("/chat", json={"message": "hi", "conversation_id": conversation})
        found.append((time.perf_counter() - started) * 1000)
        conversation = answer.raise_for_status().json()["conversation_id"]
    return found


@asynccontextmanager
async def uploading(host: HostProcess, root: Path) -> AsyncIterator[None]:
    """Have so many uploads begin at once, again and again while the block runs.

    Each is tried until it is stored, when the host says: one curl for all of them, since one that is waiting
    doesn't count as one of curl's ``--parallel-max`` and further ones would take its place.
    """
    content = root / "content"
    content.write_bytes(os.urandom(UPLOAD))
    one = f'upload-file = "{content}"\nurl = "{host.url}/chat/main/files/up/{{}}"\n'
    said = f'header = "Authorization: {HEADERS["Authorization"]}"\nsilent\nretry = 1000\n'
    config = root / "uploads"
    config.write_text("next\n".join(said + one.format(number) for number in range(UPLOADS)))
    command = ["curl", "--silent", "--parallel", "--parallel-max", str(UPLOADS), "--config", str(config)]

    async def again() -> None:
        while True:
            await anyio.run_process(command)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(again)
        yield
        tasks.cancel_scope.cancel()

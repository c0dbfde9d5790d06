"""10,000 idle, slow and broken connections beside 8 callers who chat: no turn fails, none waits long."""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import anyio
import anyio.abc
import pytest

from tests.running import TOKEN, HostProcess, ModelProcess, directive, new_host, running_model

CALLERS = 8
CONNECTIONS = 10_000
WAVE = 500
WAVE_S = 1.5
QUIET_TURNS = 60
"""Turns of each caller before the flood."""

HEAD = f"POST /chat HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {TOKEN}\r\n".encode()
FIRST_WORDS = (
    b"",
    b"GET / HTTP/1.1\r\nHost: a\r\nX: ",
    b"\x16\x03\x01\x02\x00",
    b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: a\r\n" * 200,
    b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 60_000,
    HEAD + b"Content-Length: 1000\r\n\r\n{",
    HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{",
    b"POST /chat HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n{",
    b"GET /chat HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer wrong\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n" * 2,
)


@pytest.fixture(scope="module")
def model() -> Iterator[ModelProcess]:
    with running_model() as process:
        yield process


@pytest.fixture
def host(model: ModelProcess, tmp_path: Path) -> Iterator[HostProcess]:
    made = new_host(tmp_path / "host", model.url)
    yield made.start()
    assert made.stop() == 0


class Caller(threading.Thread):
    """Says one thing after another in its conversation and takes the time."""

    def __init__(self, host: HostProcess, done: threading.Event) -> None:
        super().__init__()
        self._host, self._done = host, done
        self.seconds: list[float] = []
        self.failures: list[str] = []
        self.start()

    def run(self) -> None:
        conversation = None
        while not self._done.is_set():
            with self._host.client() as client:
                for _ in range(20):
                    body = {"message": directive("hi", text="fine"), "conversation_id": conversation}
                    begun = time.monotonic()
                    answer = client.post("/chat", json=body)
                    self.seconds.append(time.monotonic() - begun)
                    if answer.status_code != 200 or answer.json()["status"] != "success":
                        self.failures.append(answer.text)
            conversation = answer.json().get("conversation_id") if len(self.seconds) % 100 else None


async def flood(port: int) -> None:
    """Open connections in waves; what they hold is held until the host ends it, at most to the end."""
    dice = random.Random(1)
    with anyio.move_on_after(CONNECTIONS / WAVE * WAVE_S + 30):
        async with anyio.create_task_group() as peers:
            for _ in range(CONNECTIONS // WAVE):
                begun = anyio.current_time()
                for _ in range(WAVE):
                    peers.start_soon(_peer, port, dice.choice(FIRST_WORDS), dice.random())
                await anyio.sleep_until(begun + WAVE_S)


async def _peer(port: int, words: bytes, fate: float) -> None:
    await anyio.sleep(fate * WAVE_S)
    try:
        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            for start in range(0, len(words), 20_000):
                await stream.send(words[start : start + 20_000])
            if fate < 0.2:
                return
            if fate > 0.9:
                await anyio.sleep(60)  # reads nothing
            while True:
                await stream.receive(4096)
    except (OSError, anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
        return


def p99(seconds: list[float]) -> float:
    return statistics.quantiles(seconds, n=100)[98]


@pytest.mark.slow
def test_ten_thousand_bad_connections_fail_no_turn_and_hold_none_up(host: HostProcess) -> None:
    done = threading.Event()
    callers = [Caller(host, done) for _ in range(CALLERS)]
    try:
        while min(len(caller.seconds) for caller in callers) < 20 + QUIET_TURNS:
            time.sleep(0.1)
        quiet = [taken for caller in callers for taken in caller.seconds[20:]]
        at = [len(caller.seconds) for caller in callers]
        # In a process of its own: the callers' times are not to hang on it.
        subprocess.run([sys.executable, "-m", __name__, str(host.port)], check=True, timeout=120)
    finally:
        done.set()
        for caller in callers:
            caller.join(60)
    flooded = [taken for caller, start in zip(callers, at, strict=True) for taken in caller.seconds[start:]]
    assert [failure for caller in callers for failure in caller.failures] == []
    with host.client() as client:
        lines = client.get("/metrics").text.splitlines()
    figures = {
        "turns": [len(quiet), len(flooded)],
        "median": [round(statistics.median(some), 4) for some in (quiet, flooded)],
        "p99": [round(p99(some), 4) for some in (quiet, flooded)],
        "connections": [line for line in lines if line.startswith("picoclaw_connections")],
    }
    print(json.dumps(figures, indent=1))
    assert p99(flooded) <= 2 * p99(quiet)


if __name__ == "__main__":
    anyio.run(flood, int(sys.argv[1]), backend_options={"use_uvloop": True})

"""Many streaming conversations at once: how late the event loop is, what each costs, whether events are lost.

Every conversation's model tells so many pieces a second. Lateness is what a GET /health waits meanwhile, seen
from outside: the event loop answers it between two pieces. The floor is the bare SDK reading the same streams
in one process, which is what no host on this SDK can pass on one core.
"""

from __future__ import annotations

import asyncio
import json
import resource
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import psutil

from benchmarks.turns import HEADERS, percentiles
from tests.running import HostProcess, directive, new_host, running_model

CONVERSATIONS: Final = 1000
RATES: Final = (1, 5, 50)
"""Pieces a second that each model wants to tell."""
SECONDS: Final = 5
PIECE: Final = "a piece "
KIB: Final = 1024


async def main() -> dict[str, float]:
    """Return the figures; times in milliseconds, memory in KiB."""
    _raise_file_limit()
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as root, running_model() as model:
        settings = {"LOG_LEVEL": "warning", "MAX_CONCURRENT_RUNS": str(2 * CONVERSATIONS)}
        host = new_host(Path(root) / "host", model.url, settings).start()
        try:
            await told(host, 1, [PIECE])
            figures |= await doors(host)
            for rate in RATES:
                figures |= await measure(host, rate)
        finally:
            host.stop()
        figures |= await bare(model.url)
    return figures


async def measure(host: HostProcess, rate: int) -> dict[str, float]:
    """Stream to all conversations at this rate."""
    assert host.process is not None
    process = psutil.Process(host.process.pid)
    before, cpu, started = process.memory_full_info().pss, _cpu(process), time.perf_counter()
    pieces = [PIECE] * (rate * SECONDS)
    peak = 0
    async with asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(watch(host))
        streams = [tasks.create_task(told(host, rate, pieces)) for _ in range(CONVERSATIONS)]
        while not all(stream.done() for stream in streams):
            await asyncio.sleep(0.5)
            peak = max(peak, process.memory_full_info().pss)
        watching.cancel()
    took = time.perf_counter() - started
    events = sum(stream.result() for stream in streams)
    if events != CONVERSATIONS * len(pieces):
        raise RuntimeError(f"{CONVERSATIONS * len(pieces) - events} events were lost")
    label = f"{CONVERSATIONS} streams, {rate}/s wanted"
    lateness = percentiles(LATENESS)
    LATENESS.clear()
    return {
        f"{label}: pieces a second": events / took,
        f"{label}: event loop late (ms p50)": lateness[0],
        f"{label}: event loop late (ms p99)": lateness[1],
        f"{label}: memory each (KiB PSS)": (peak - before) / KIB / CONVERSATIONS,
        f"{label}: CPU of the host a piece (ms)": (_cpu(process) - cpu) * 1000 / events,
    }


async def doors(host: HostProcess) -> dict[str, float]:
    """Tell the same pieces as events of POST /chat and of /v1/responses, in turns."""
    assert host.process is not None
    process, took = psutil.Process(host.process.pid), dict.fromkeys(DOORS, 0.0)
    pieces = [PIECE] * 1000
    for path in DOORS * 5:
        before = _cpu(process)
        async with asyncio.TaskGroup() as tasks:
            for _ in range(STREAMS_OF_A_DOOR):
                tasks.create_task(told(host, 200, pieces, path))
        took[path] += _cpu(process) - before
    events = 5 * STREAMS_OF_A_DOOR * len(pieces)
    figures = {f"{path}: CPU of the host a piece (ms)": cpu * 1000 / events for path, cpu in took.items()}
    chat, responses = took.values()
    return {**figures, "ratio: /v1/responses against /chat, CPU of the host a piece": responses / chat}


DOORS: Final = ("/chat", "/v1/responses")
STREAMS_OF_A_DOOR: Final = 5
LATENESS: Final[list[float]] = []


async def watch(host: HostProcess) -> None:
    """Ask /health again and again, on one connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", host.port)
    try:
        while True:
            started = time.perf_counter()
            writer.write(b"GET /health HTTP/1.1\r\nhost: h\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(_length(head))
            LATENESS.append((time.perf_counter() - started) * 1000)
            await asyncio.sleep(0.02)
    finally:
        writer.close()


async def told(host: HostProcess, rate: int, pieces: list[str], path: str = "/chat") -> int:
    """Stream one conversation to its end; return how many pieces came, having checked them all."""
    message = directive(deltas=pieces, delta_delay_ms=1000 / rate)
    said = "input" if path == "/v1/responses" else "message"
    body = json.dumps({said: message, "stream": True}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", host.port)
    head = [f"{name}: {value}" for name, value in HEADERS.items()]
    lines = [f"POST {path} HTTP/1.1", "host: h", "connection: close", f"content-length: {len(body)}", *head]
    writer.write("\r\n".join([*lines, "", ""]).encode() + body)
    received = await reader.read()
    writer.close()
    texts = [json.loads(line[6:]) for line in _data(received)]
    if path == "/v1/responses":
        deltas = [data["delta"] for data in texts if data["type"] == "response.output_text.delta"]
        return sum(delta.count(PIECE.strip()) for delta in deltas)
    chunks = [data["text"] for data in texts if data.keys() == {"text"}]
    ending = texts[-1]
    if ending.get("status") != "success" or "".join(chunks).strip() != ending["result"]:
        raise RuntimeError(f"the chunks are not the result: {ending.get('error', ending)}")
    return sum(chunk.count(PIECE.strip()) for chunk in chunks)


async def bare(url: str) -> dict[str, float]:
    """Measure the SDK alone reading as many streams, all of its core for itself."""
    from anthropic import AsyncAnthropic

    pieces = [PIECE] * 50
    message: Any = {"role": "user", "content": directive(deltas=pieces, delta_delay_ms=1)}

    async def read(client: AsyncAnthropic) -> None:
        stream = await client.messages.create(model="m", max_tokens=100, messages=[message], stream=True)
        async for _event in stream:
            pass

    async with AsyncAnthropic(api_key="none", base_url=url, max_retries=0, timeout=300) as client:
        started, cpu = time.perf_counter(), time.process_time()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(CONVERSATIONS):
                tasks.create_task(read(client))
        count = CONVERSATIONS * len(pieces)
        return {
            "floor: the bare SDK, pieces a second": count / (time.perf_counter() - started),
            "floor: the bare SDK, CPU a piece (ms)": (time.process_time() - cpu) * 1000 / count,
        }


def _data(received: bytes) -> Iterable[bytes]:
    return (line for line in received.replace(b"\r\n", b"\n").split(b"\n") if line.startswith(b"data: "))


def _length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    raise RuntimeError("no content-length")


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _raise_file_limit() -> None:
    """Each stream is a socket here, two in the host and one at the model; children inherit the limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

"""Turns: the host against the fake model at 0 ms, beside a bare loop on the SDK against the same model.

Own time per turn is what a caller waits, less what the bare SDK needs for the same exchange. Everything runs
on one machine: the host shares its cores with the fake model and with the callers. The least host
(``benchmarks.least_host``) is measured in the same way.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import psutil

from tests.running import TOKEN, HostProcess, ModelProcess, directive, new_host, running_model

REPLY: Final = directive(deltas=["Hello ", "there, ", "this is ", "an answer."])
HEADERS: Final = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
ROUNDS: Final = 150
SETTLED_S: Final = 4.0
"""After a start, what loads behind it (the SDK) is there."""
STARTS: Final = 9
LOAD_TURNS: Final = 400
MIB: Final = 1024 * 1024


async def main() -> dict[str, float]:
    """Return the figures; times in milliseconds, memory in MiB."""
    return await asyncio.to_thread(measure)


def measure() -> dict[str, float]:
    """Run everything once."""
    figures: dict[str, float] = {"this machine: a million additions in Python (ms)": timed(_additions)}
    with tempfile.TemporaryDirectory() as root, running_model("--any-client") as model:
        host = new_host(
            Path(root) / "host", model.url, {"LOG_LEVEL": "warning", "MAX_CONCURRENT_RUNS": "256"}
        )
        figures["start to /health, first ever (ms)"] = start_ms(host)
        time.sleep(SETTLED_S)
        figures["memory, idle after the start (MiB PSS)"] = pss_mib(host)
        host.stop()
        try:
            figures |= starts(host)
            figures["memory, idle after the first turn (MiB PSS)"] = pss_mib(host)
            figures |= one_at_a_time(host, model)
            for conversations in (8, 64):
                figures |= load(host, conversations)
            figures["memory, after 64 at once (MiB PSS)"] = pss_mib(host)
            figures |= with_tools(host, model)
        finally:
            host.stop()
        figures |= least_host(Path(root), model)
    return figures


def least_host(root: Path, model: ModelProcess) -> dict[str, float]:
    """Measure the same with the least host."""
    command = (sys.executable, "-m", "benchmarks.least_host", model.url, str(root))
    host = HostProcess(root, dict(os.environ), command=command)
    (root / "bench.txt").write_text("hello\n")
    start_ms(host)
    host.stop()
    try:
        figures = starts(host)
        plain = percentiles([timed(lambda: turn(host, None)) for _ in range(ROUNDS)])[0]
        bare = percentiles(asyncio.run(bare_turns(model.url)))[0]
        figures["a turn (ms p50)"] = plain
        figures["first chunk (ms p50)"] = percentiles([first_chunk_ms(host) for _ in range(ROUNDS)])[0]
        for tool in ("exec", "read_file"):
            took = percentiles([timed(lambda: turn(host, None, tool=tool)) for _ in range(60)])[0]  # noqa: B023 - called at once
            figures[f"a turn with {tool}, on top of two model calls (ms p50)"] = took - plain - bare
        for conversations in (8, 64):
            figures |= load(host, conversations)
    finally:
        host.stop()
    return {f"least host: {name}": figure for name, figure in figures.items()}


def one_at_a_time(host: HostProcess, model: ModelProcess) -> dict[str, float]:
    """Measure single turns, and the floor under them."""
    bare = percentiles(asyncio.run(bare_turns(model.url)))
    bare_load = timed(lambda: asyncio.run(bare_turns(model.url, 8)))
    turn(host, None)
    bare_own = percentiles(asyncio.run(bare_turns(model.url, request=last_request(model))))
    fresh = percentiles([timed(lambda: turn(host, None)) for _ in range(ROUNDS)])
    conversation = turn(host, None)["conversation_id"]
    following = percentiles([timed(lambda: turn(host, conversation)) for _ in range(50)])
    chunks = percentiles([first_chunk_ms(host) for _ in range(ROUNDS)])
    return {
        "floor: the bare SDK, one turn (ms p50)": bare[0],
        "floor: the bare SDK, one turn with the host's request (ms p50)": bare_own[0],
        "floor: the bare SDK, 8 at once (turns/s)": 8 * ROUNDS / bare_load * 1000,
        "a turn, new conversation (ms p50)": fresh[0],
        "a turn, new conversation (ms p99)": fresh[1],
        "own time, new conversation (ms p50)": fresh[0] - bare[0],
        "own time, 2nd to 50th turn (ms p50)": following[0] - bare[0],
        "ratio to the floor, new conversation": fresh[0] / bare[0],
        "first chunk (ms p50)": chunks[0],
    }


def with_tools(host: HostProcess, model: ModelProcess) -> dict[str, float]:
    """Measure turns with one call of a tool."""
    tools = {
        "tool-server call": ("mcp__picoclaw__list_tasks", {}),
        "exec": ("exec", {"command": "true"}),
        "read_file": ("read_file", {"path": "bench.txt"}),
    }
    Path(host.environment["MEMORY_DIR"], "bench.txt").write_text("hello\n")
    figures: dict[str, float] = {}
    for name, (tool, arguments) in tools.items():
        step = {"tools": [{"name": tool, "input": arguments}]}
        took = on_top(host, model, directive(steps=[step, {"text": "done"}]))
        figures[f"a turn with {name}, on top of two model calls (ms p50)"] = took
    return figures


def on_top(host: HostProcess, model: ModelProcess, body: str) -> float:
    """Return what a turn with a tool takes longer than one without, less its second model call.

    Both are made in turns in the same short conversations, so that they carry the same history.
    """
    with_tool: list[float] = []
    plain: list[float] = []
    for _ in range(6):
        conversation = turn(host, None, body)["conversation_id"]
        for _ in range(10):
            with_tool.append(timed(lambda: turn(host, conversation, body)))  # noqa: B023 - called at once
            plain.append(timed(lambda: turn(host, conversation)))  # noqa: B023 - called at once
    call = percentiles(asyncio.run(bare_turns(model.url, request=last_request(model))))[0]
    return percentiles(with_tool)[0] - percentiles(plain)[0] - call


def last_request(model: ModelProcess) -> dict[str, Any]:
    """Return the body of the last request that the model got, to be sent again by the bare SDK."""
    body = model.requests()[-1]["body"]
    return {name: value for name, value in body.items() if name != "stream"}


def load(host: HostProcess, conversations: int) -> dict[str, float]:
    """Measure turns a second with so many conversations at once, and how fair they are served."""
    done: list[int] = [0] * conversations
    cpu = host_cpu(host)
    until = LOAD_TURNS // conversations
    begin = threading.Barrier(conversations + 1)
    ended: list[float] = [0.0] * conversations

    def talk(index: int) -> None:
        connection = connect(host)
        begin.wait()
        conversation: str | None = None
        for _ in range(max(until, 5)):
            conversation = turn(host, conversation, connection=connection)["conversation_id"]
            done[index] += 1
        ended[index] = time.perf_counter()

    threads = [threading.Thread(target=talk, args=(index,)) for index in range(conversations)]
    for thread in threads:
        thread.start()
    begin.wait()
    started = time.perf_counter()
    peak = pss_mib(host)
    for thread in threads:
        thread.join()
    took = max(ended) - started
    each = [at - started for at in ended]
    label = f"{conversations} conversations at once"
    return {
        f"{label} (turns/s)": sum(done) / took,
        f"{label}: slowest to fastest": max(each) / min(each),
        f"{label}: memory (MiB PSS)": peak,
        f"{label}: CPU of the host a turn (ms)": (host_cpu(host) - cpu) * 1000 / sum(done),
    }


async def bare_turns(url: str, at_once: int = 1, request: dict[str, Any] | None = None) -> list[float]:
    """Return what an exchange takes with nothing but the SDK, in milliseconds each."""
    from anthropic import AsyncAnthropic

    request = request or {"model": "m", "max_tokens": 100, "messages": [{"role": "user", "content": REPLY}]}
    took: list[float] = []

    async def talk(client: AsyncAnthropic) -> None:
        for _ in range(ROUNDS):
            started = time.perf_counter()
            stream = await client.messages.create(**request, stream=True)
            async for _event in stream:
                pass
            took.append((time.perf_counter() - started) * 1000)

    async with AsyncAnthropic(api_key="none", base_url=url, max_retries=0) as client:
        await asyncio.gather(*(talk(client) for _ in range(at_once)))
    return took


def connect(host: HostProcess) -> http.client.HTTPConnection:
    """Return a connection that is kept alive."""
    return http.client.HTTPConnection("127.0.0.1", host.port, timeout=60)


_kept: dict[int, http.client.HTTPConnection] = {}


def turn(
    host: HostProcess,
    conversation: str | None,
    message: str = REPLY,
    connection: http.client.HTTPConnection | None = None,
    **more: str,
) -> dict[str, Any]:
    """Make one turn and return its answer; ``more`` is for the request."""
    connection = connection or _kept.setdefault(host.port, connect(host))
    body: dict[str, Any] = {"message": message, **more}
    if conversation is not None:
        body["conversation_id"] = conversation
    connection.request("POST", "/chat", json.dumps(body), HEADERS)
    answer: dict[str, Any] = json.loads(connection.getresponse().read())
    if answer.get("status") != "success":
        raise RuntimeError(f"a turn failed: {answer}")
    return answer


def first_chunk_ms(host: HostProcess) -> float:
    """Return the time from a request to its first chunk."""
    connection = connect(host)
    connection.connect()
    started = time.perf_counter()
    connection.request("POST", "/chat", json.dumps({"message": REPLY, "stream": True}), HEADERS)
    response = connection.getresponse()
    took = 0.0
    while line := response.readline():
        if not took and line.startswith(b"event: chunk"):
            took = (time.perf_counter() - started) * 1000
    connection.close()
    return took


def start_ms(host: HostProcess) -> float:
    """Start the host and return the time to the first 200 of /health."""
    _kept.pop(host.port, None)
    started = time.perf_counter()
    host.start(wait=False)
    while True:
        connection = connect(host)
        try:
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return (time.perf_counter() - started) * 1000
        except OSError:
            time.sleep(0.002)
        finally:
            connection.close()


def starts(host: HostProcess) -> dict[str, float]:
    """Start the host some times, with a turn each, and leave it running.

    One start tells little where the machine's speed changes by half from one to the next.
    """
    health, first = [], []
    for number in range(STARTS):
        if number:
            host.stop()
        health.append(start_ms(host))
        first.append(health[-1] + timed(lambda: turn(host, None)))
    return {
        f"start to /health, quickest of {STARTS} (ms)": min(health),
        "start to /health (ms p50)": statistics.median(health),
        f"start to first finished turn, quickest of {STARTS} (ms)": min(first),
        "start to first finished turn (ms p50)": statistics.median(first),
    }


def pss_mib(host: HostProcess) -> float:
    """Return the proportional memory of the whole tree."""
    return sum(pss(process) for process in host.tree()) / MIB


def host_cpu(host: HostProcess) -> float:
    """Return the CPU seconds of the whole tree."""
    times = [process.cpu_times() for process in host.tree()]
    return sum(entry.user + entry.system for entry in times)


def _additions() -> int:
    """What tells how fast a machine is at this moment, for whoever compares runs."""
    total = 0
    for number in range(1_000_000):
        total += number
    return total


def timed(work: Callable[[], object]) -> float:
    """Return how long the work took, in milliseconds."""
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1000


def percentiles(values: list[float]) -> tuple[float, float]:
    """Return the 50th and the 99th percentile."""
    ordered = sorted(values)
    return statistics.median(ordered), ordered[min(int(len(ordered) * 0.99), len(ordered) - 1)]


def pss(process: psutil.Process) -> int:
    """Return the proportional memory of one process in bytes; 0 if it is gone."""
    with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        return int(process.memory_full_info().pss)
    return 0

"""Turns: the host, the least host (``benchmarks.least_host``) and the bare SDK against the same fake model.

All three are measured in turn, a few turns of each at a time, and compared round by round: a ratio is the
median of the rounds' ratios. So ratios hold on a machine whose speed changes meanwhile; milliseconds don't.
Everything runs on one machine: the hosts share its cores with the fake model and with the callers.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import select
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import psutil

from tests.running import TOKEN, HostProcess, ModelProcess, directive, new_host, running_model

REPLY: Final = directive(deltas=["Hello ", "there, ", "this is ", "an answer."])
HEADERS: Final = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
SCALE: Final = float(os.environ.get("BENCH_SCALE", "1"))
"""How many rounds are made: 1 for figures to be told, less for a look."""
ROUNDS: Final = max(int(30 * SCALE), 2)
EACH: Final = 10 if SCALE else 2
"""Turns of one contender before the next one's."""
SETTLED_S: Final = 4.0 if SCALE else 0.0
"""After a start, what loads behind it is there: the SDK, and from its second on the tool servers' zygote."""
STARTS: Final = max(int(9 * SCALE), 1)
LIVES: Final = 3 if SCALE else 1
"""Starts whose memory is measured: the first one makes the store, and compiles what was never run."""
LOADS: Final = max(int(9 * SCALE), 1)
LOAD_TURNS: Final = int(320 * min(SCALE, 1))
MIB: Final = 1024 * 1024
TOOLS: Final = {
    "tool-server call": ("mcp__picoclaw__list_tasks", {}, 1.0),
    "exec": ("exec", {"command": "true"}, 2.0),
    "read_file": ("read_file", {"path": "bench.txt"}, 0.3),
}
"""What the agent calls, with which input, and the aim in floors."""

Rounds = dict[str, list[float]]
"""By name of what is measured, what each round gave."""


async def main() -> dict[str, float]:
    """Return the figures; times in milliseconds, memory in MiB, ratios with their aims."""
    return await asyncio.to_thread(measure)


def measure() -> dict[str, float]:
    """Run everything once."""
    figures: dict[str, float] = {"this machine: a million additions in Python (ms)": timed(_additions)}
    with tempfile.TemporaryDirectory() as root, running_model("--any-client") as model:
        ours = new_host(
            Path(root) / "host", model.url, {"LOG_LEVEL": "warning", "MAX_CONCURRENT_RUNS": "256"}
        )
        least = least_host(Path(root), model.url)
        with contextlib.closing(BareSdk(model.url)) as bare:
            try:
                figures |= starts(ours, least)
                figures |= single_turns(ours, least, bare, model)
                figures |= loads(ours, least, bare)
                figures |= with_tools(ours, bare, model)
            finally:
                for host in (ours, least):
                    if host.process is not None:
                        host.stop()
    return figures


def least_host(root: Path, model_url: str) -> HostProcess:
    """Return the least host, not yet started."""
    command = (sys.executable, "-m", "benchmarks.least_host", model_url, str(root))
    return HostProcess(root, dict(os.environ), command=command)


class BareSdk:
    """The SDK alone, with a client and a loop that are kept."""

    def __init__(self, url: str) -> None:
        from anthropic import AsyncAnthropic

        self._runner = asyncio.Runner()
        self._client = AsyncAnthropic(api_key="none", base_url=url, max_retries=0)
        self._request = {"model": "m", "max_tokens": 100, "messages": [{"role": "user", "content": REPLY}]}

    def close(self) -> None:
        self._runner.run(self._client.close())
        self._runner.close()

    def turn_ms(self, request: dict[str, Any] | None = None) -> float:
        """Return what an exchange takes."""
        return self._runner.run(self._exchange(request or self._request))[1]

    def first_chunk_ms(self) -> float:
        """Return the time to the first piece of text."""
        return self._runner.run(self._exchange(self._request))[0]

    def load(self, at_once: int) -> dict[str, float]:
        """Return exchanges a second with so many at once."""

        async def talk() -> None:
            for _ in range(turns_each(at_once)):
                await self._exchange(self._request)

        async def all_talk() -> None:
            await asyncio.gather(*(talk() for _ in range(at_once)))

        took = timed(lambda: self._runner.run(all_talk()))
        return {"turns/s": at_once * turns_each(at_once) / took * 1000}

    async def _exchange(self, request: dict[str, Any]) -> tuple[float, float]:
        first = 0.0
        started = time.perf_counter()
        async for event in await self._client.messages.create(**request, stream=True):
            if not first and event.type == "content_block_delta":
                first = (time.perf_counter() - started) * 1000
        return first, (time.perf_counter() - started) * 1000


def in_turn(measured: dict[str, Callable[[], float]], rounds: int = ROUNDS, each: int = EACH) -> Rounds:
    """Measure one after the other, round by round; a round's figure is the median of some."""
    found: Rounds = {name: [] for name in measured}
    for _ in range(rounds):
        for name, once in measured.items():
            found[name].append(statistics.median(once() for _ in range(each)))
    return found


def ratio(of: list[float], to: list[float]) -> float:
    """Return the median of the rounds' ratios."""
    return statistics.median(one / other for one, other in zip(of, to, strict=True))


def medians(rounds: Rounds) -> dict[str, float]:
    """Return the median of each."""
    return {name: statistics.median(figures) for name, figures in rounds.items()}


def starts(ours: HostProcess, least: HostProcess) -> dict[str, float]:
    """Start both some times, with a turn each, and leave them running."""
    figures = {"start to /health, first ever (ms)": start_ms(ours)}
    memory: Rounds = {}
    for number in range(LIVES):
        if number:
            start_ms(ours)
        time.sleep(SETTLED_S)
        idle = "memory, idle after the start (MiB PSS; aim: 100)"
        memory.setdefault(idle, []).append(pss_mib(ours))
        memory.setdefault("the same without files' pages (MiB)", []).append(pss_mib(ours, "Pss_Anon"))
        turn(ours, None)
        load(ours, 8)
        memory.setdefault("memory, 8 at once (MiB PSS; aim: 140)", []).append(load(ours, 8)["MiB PSS"])
        ours.stop()
    figures |= medians(memory)
    start_ms(least)
    least.stop()
    found: Rounds = {}
    for number in range(STARTS):
        for name, host in (("", ours), ("least host: ", least)):
            if number:
                host.stop()
            health = start_ms(host)
            first = health + timed(lambda: turn(host, None))  # noqa: B023 - called at once
            found.setdefault(f"{name}start to /health (ms p50)", []).append(health)
            found.setdefault(f"{name}start to first finished turn (ms p50)", []).append(first)
    name = "start to first finished turn (ms p50)"
    compared = ratio(found[name], found[f"least host: {name}"])
    return figures | medians(found) | {"start to first finished turn / least host (aim: 0.6)": compared}


def single_turns(
    ours: HostProcess, least: HostProcess, bare: BareSdk, model: ModelProcess
) -> dict[str, float]:
    """Measure single turns of all, and the first chunk."""
    turn(ours, None)
    own = last_request(model)
    following = _following(ours)
    found = in_turn(
        {
            "floor: the bare SDK, one turn (ms p50)": bare.turn_ms,
            "a turn, new conversation (ms p50)": lambda: timed(lambda: turn(ours, None)),
            "a turn, 2nd to 50th (ms p50)": lambda: timed(lambda: next(following)),
            "least host: a turn (ms p50)": lambda: timed(lambda: turn(least, None)),
            "floor: the bare SDK with the host's request (ms p50)": lambda: bare.turn_ms(own),
            "floor: the bare SDK, first chunk (ms p50)": bare.first_chunk_ms,
            "first chunk (ms p50)": lambda: first_chunk_ms(ours),
            "least host: first chunk (ms p50)": lambda: first_chunk_ms(least),
        }
    )
    floor, fresh, later, least_turn, own_request, bare_chunk, chunk, _ = found.values()
    return medians(found) | {
        "a turn / the bare SDK (aim: 2.5)": ratio(fresh, floor),
        "a turn, 2nd to 50th / the bare SDK (aim: 2.5)": ratio(later, floor),
        "a turn / the bare SDK with the host's request": ratio(fresh, own_request),
        "a turn / the least host (aim: 1.3)": ratio(fresh, least_turn),
        "first chunk / the bare SDK (aim: 2.5)": ratio(chunk, bare_chunk),
    }


def _following(host: HostProcess) -> Iterator[None]:
    """Make the 2nd to 50th turn of one conversation after another."""
    while True:
        conversation = turn(host, None)["conversation_id"]
        for _ in range(49):
            turn(host, conversation)
            yield


def loads(ours: HostProcess, least: HostProcess, bare: BareSdk) -> dict[str, float]:
    """Measure 8 and 64 conversations at once."""
    figures: dict[str, float] = {}
    for at_once in (8, 64):
        found: Rounds = {}
        for _ in range(LOADS):
            for name, got in (
                ("floor: the bare SDK, ", bare.load(at_once)),
                ("", load(ours, at_once)),
                ("least host: ", load(least, at_once)),
            ):
                for what, figure in got.items():
                    found.setdefault(f"{name}{at_once} at once ({what})", []).append(figure)
        rate, cpu = f"{at_once} at once (turns/s)", f"{at_once} at once (CPU of the host a turn, ms)"
        aim = " (aim: 0.65)" if at_once == 8 else ""
        figures |= medians(found) | {
            f"{at_once} at once: rate / the bare SDK's{aim}": ratio(
                found[rate], found[f"floor: the bare SDK, {rate}"]
            ),
            f"{at_once} at once: CPU a turn / least host (aim: 1.3)": ratio(
                found[cpu], found[f"least host: {cpu}"]
            ),
        }
    return figures


def with_tools(ours: HostProcess, bare: BareSdk, model: ModelProcess) -> dict[str, float]:
    """Measure turns with one call of a tool, beside turns without one in the same short conversations.

    Told is what such a turn takes longer than one without, less its second model call.
    """
    Path(ours.environment["MEMORY_DIR"], "bench.txt").write_text("hello\n")
    figures: dict[str, float] = {}
    for name, (tool, arguments, aim) in TOOLS.items():
        body = directive(steps=[{"tools": [{"name": tool, "input": arguments}]}, {"text": "done"}])
        rounds: Rounds = {"with": [], "plain": [], "call": [], "floor": []}
        for _ in range(max(ROUNDS // 4, 1)):
            conversation = turn(ours, None, body)["conversation_id"]
            turn(ours, conversation, body)
            request = last_request(model)
            once = {
                "with": lambda: timed(lambda: turn(ours, conversation, body)),  # noqa: B023 - called at once
                "plain": lambda: timed(lambda: turn(ours, conversation)),  # noqa: B023 - called at once
                "call": lambda: bare.turn_ms(request),  # noqa: B023 - called at once
                "floor": bare.turn_ms,
            }
            for what, got in in_turn(once, rounds=EACH, each=1).items():
                rounds[what].append(statistics.median(got))
        on_top = [w - p - c for w, p, c in zip(rounds["with"], rounds["plain"], rounds["call"], strict=True)]
        figures |= {
            f"{name}, on top of two model calls (ms p50)": statistics.median(on_top),
            f"{name}, on top of two model calls / the bare SDK (aim: {aim})": ratio(on_top, rounds["floor"]),
        }
    return figures


def last_request(model: ModelProcess) -> dict[str, Any]:
    """Return the body of the last request that the model got, to be sent again by the bare SDK."""
    body = model.requests()[-1]["body"]
    return {name: value for name, value in body.items() if name != "stream"}


def load(host: HostProcess, conversations: int) -> dict[str, float]:
    """Measure turns a second with so many conversations at once, and how fair they are served."""
    done: list[int] = [0] * conversations
    cpu = host_cpu(host)
    begin = threading.Barrier(conversations + 1)
    ended: list[float] = [0.0] * conversations

    def talk(index: int) -> None:
        connection = connect(host)
        begin.wait()
        conversation: str | None = None
        for _ in range(turns_each(conversations)):
            conversation = turn(host, conversation, connection=connection)["conversation_id"]
            done[index] += 1
        ended[index] = time.perf_counter()
        connection.close()

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
    return {
        "turns/s": sum(done) / took,
        "slowest to fastest": max(each) / min(each),
        "MiB PSS": peak,
        "CPU of the host a turn, ms": (host_cpu(host) - cpu) * 1000 / sum(done),
    }


def turns_each(at_once: int) -> int:
    """Return how many turns each of so many callers makes in a round."""
    return max(LOAD_TURNS // at_once, 2)


def connect(host: HostProcess) -> http.client.HTTPConnection:
    """Return a connection that is kept alive."""
    return http.client.HTTPConnection("127.0.0.1", host.port, timeout=60)


_kept: dict[int, http.client.HTTPConnection] = {}


def kept(host: HostProcess) -> http.client.HTTPConnection:
    """Return the connection that is used again and again, a new one where the host has ended it."""
    connection = _kept.get(host.port)
    if connection is None or connection.sock is None or select.select([connection.sock], [], [], 0)[0]:
        connection = _kept[host.port] = connect(host)
    return connection


def turn(
    host: HostProcess,
    conversation: str | None,
    message: str = REPLY,
    connection: http.client.HTTPConnection | None = None,
    token: str = TOKEN,
) -> dict[str, Any]:
    """Make one turn and return its answer."""
    connection = connection or kept(host)
    body: dict[str, Any] = {"message": message}
    if conversation is not None:
        body["conversation_id"] = conversation
    connection.request("POST", "/chat", json.dumps(body), HEADERS | {"Authorization": f"Bearer {token}"})
    answer: dict[str, Any] = json.loads(connection.getresponse().read())
    if answer.get("status") != "success":
        raise RuntimeError(f"a turn failed: {answer}")
    return answer


def first_chunk_ms(host: HostProcess) -> float:
    """Return the time from a request to its first chunk."""
    connection = kept(host)
    started = time.perf_counter()
    connection.request("POST", "/chat", json.dumps({"message": REPLY, "stream": True}), HEADERS)
    response = connection.getresponse()
    took = 0.0
    while line := response.readline():
        if not took and line.startswith(b"event: chunk"):
            took = (time.perf_counter() - started) * 1000
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


def pss_mib(host: HostProcess, what: str = "Pss") -> float:
    """Return the proportional memory of the whole tree; ``what``: see smaps_rollup in proc_pid_smaps(5).

    Pages of files (libraries) are shared with whatever else runs Python on the machine, ``Pss_Anon`` isn't.
    """
    return sum(pss(process, what) for process in host.tree()) / MIB


def host_cpu(host: HostProcess) -> float:
    """Return the CPU seconds of the whole tree."""
    used = 0.0
    for process in host.tree():
        with suppress(psutil.NoSuchProcess):
            used += sum(process.cpu_times()[:2])
    return used


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


def pss(process: psutil.Process, what: str = "Pss") -> int:
    """Return the proportional memory of one process in bytes; 0 if it is gone."""
    with suppress(OSError, StopIteration):
        lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{what}:")) * 1024
    return 0

"""Other people's servers: what a turn costs with five healthy ones to what it costs with none.

Two hosts against the same fake model and the same servers, which are a process of their own; in turns, ten at
a time, so that both meet the machine in the same state. The model calls no tool of theirs.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Final

from benchmarks.principals import ground, processor_s
from benchmarks.turns import pss_mib, turn
from tests.http.conftest import configure
from tests.mcp.other_servers import listening, weather_server
from tests.running import HostProcess, new_host

SERVERS: Final = 5
AT_A_TIME: Final = 10
ROUNDS: Final = 15


class Turns:
    """A host, and what its turns took."""

    def __init__(self, host: HostProcess) -> None:
        self.host = host
        self._conversation = turn(host, None)["conversation_id"]
        self._processor_s = processor_s(host)
        self.took_ms: list[float] = []

    def more(self) -> None:
        """Make some turns in one conversation."""
        for _ in range(AT_A_TIME):
            started = time.perf_counter()
            turn(self.host, self._conversation)
            self.took_ms.append((time.perf_counter() - started) * 1000)

    def figures(self) -> dict[str, float]:
        """Return what it came to."""
        return {
            "a turn (ms p50)": statistics.median(self.took_ms),
            "a turn: processor time of all processes (ms)": (processor_s(self.host) - self._processor_s)
            * 1000
            / len(self.took_ms),
            "memory of the tree (MiB PSS)": pss_mib(self.host),
        }


async def main() -> dict[str, float]:
    """Return the figures, and their ratios."""
    return await asyncio.to_thread(measure)


def measure() -> dict[str, float]:
    """Run both hosts."""
    with ground() as (running, root, model):
        urls = running.enter_context(servers())
        hosts = []
        for name, own in (("none", {}), ("five", {f"s{n}": {"url": url} for n, url in enumerate(urls)})):
            host = new_host(root / name, model.url, {"LOG_LEVEL": "warning"})
            configure(host, tools={"mcp": {"servers": own}})
            running.callback(host.stop)
            hosts.append(Turns(host.start()))
        for _ in range(ROUNDS):
            for each in hosts:
                each.more()
        none, five = (each.figures() for each in hosts)
    figures: dict[str, float] = {}
    for name, without in none.items():
        figures |= {f"no server: {name}": without, f"{SERVERS} servers: {name}": five[name]}
        figures[f"ratio: {name}"] = five[name] / without
    return figures


@contextlib.contextmanager
def servers() -> Iterator[list[str]]:
    """Yield the addresses of healthy servers."""
    command = [sys.executable, "-m", "benchmarks.other_servers"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())
        finally:
            process.terminate()


async def serve() -> None:
    """Be the servers, until terminated."""
    async with AsyncExitStack() as stack:
        apps = [weather_server().streamable_http_app() for _ in range(SERVERS)]
        urls = [f"{await stack.enter_async_context(listening(app))}/mcp" for app in apps]
        print(json.dumps(urls), flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve())

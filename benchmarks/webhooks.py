"""Webhooks: what a turn costs when its end is told to a receiver of its own, a tenth of which never answer.

Two hosts against the same fake model, a hundred turns at a time in turns, so that both meet the machine in
the same state. The receivers are a process of their own. Then as many turns that nobody is told of, while
those that never answer are tried again and again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from benchmarks.principals import processor_s
from benchmarks.turns import REPLY
from tests.running import HostProcess, free_port, new_host, running_model

RECEIVERS: Final = 1000
AT_A_TIME: Final = 100
HUNG: Final = 10
"""One receiver in so many never answers."""
SECRET: Final = "whsec_" + "A" * 32
OK: Final = b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"


def receive(port: int) -> None:
    """Answer what is posted, but for paths that begin with /hung."""
    asyncio.run(_receive(port))


async def _receive(port: int) -> None:
    async def heard(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if b" /hung" in await reader.readline():
            await asyncio.sleep(3600)
        writer.write(OK)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(heard, "127.0.0.1", port, backlog=1024) as server:
        await server.serve_forever()


@contextlib.contextmanager
def receivers() -> Iterator[str]:
    """Run the receivers and give their address."""
    port = free_port()
    process = multiprocessing.get_context("spawn").Process(target=receive, args=(port,), daemon=True)
    process.start()
    yield f"http://127.0.0.1:{port}"
    process.kill()
    process.join()


class Turns:
    """A host, and what its turns took; ``told``: where their ends are told."""

    def __init__(self, host: HostProcess, told: str | None) -> None:
        self.host = host
        self._told = told
        self._client = host.start().client()
        for _ in range(20):
            self._client.post("/chat", json={"message": REPLY})
        self._processor_s = processor_s(host)
        self.took_ms: list[float] = []

    def turns(self, first: int) -> None:
        """Make some turns."""
        for number in range(first, first + AT_A_TIME):
            body: dict[str, object] = {"message": REPLY}
            if self._told is not None:
                path = "hung" if number % HUNG == 0 else "well"
                body["webhook"] = {"url": f"{self._told}/{path}/{number}", "secret": SECRET}
            started = time.perf_counter()
            self._client.post("/chat", json=body).raise_for_status()
            self.took_ms.append((time.perf_counter() - started) * 1000)

    def figures(self, kind: str) -> dict[str, float]:
        """Return what it came to, and begin anew with turns that nobody is told of."""
        took_ms, used = self.took_ms, processor_s(self.host) - self._processor_s
        self.took_ms, self._told, self._processor_s = [], None, processor_s(self.host)
        return {
            f"a turn {kind} (ms p50)": statistics.median(took_ms),
            f"a turn {kind} (ms p99)": statistics.quantiles(took_ms, n=100)[98],
            f"a turn {kind}: processor time of all processes (ms)": used * 1000 / len(took_ms),
        }


async def main() -> dict[str, float]:
    """Return the figures, and their ratios."""
    return await asyncio.to_thread(measure)


def measure() -> dict[str, float]:
    """Run both hosts."""
    with contextlib.ExitStack() as running:
        root = Path(running.enter_context(tempfile.TemporaryDirectory()))
        model = running.enter_context(running_model("--any-client"))
        address = running.enter_context(receivers())
        both = []
        for name, told in (("without", None), ("with", address)):
            host = new_host(root / name, model.url, {"LOG_LEVEL": "warning", "SEAL_KEY": "k" * 43})
            (host.root / "home").mkdir(parents=True, exist_ok=True)
            config = {"version": 3, "webhooks": {"allowed_hosts": ["127.0.0.1"]}}
            (host.root / "home" / "config.json").write_text(json.dumps(config))
            running.callback(host.kill)
            both.append(Turns(host, told))
        figures: dict[str, float] = {}
        for kind in ("that is told", "beside them"):
            for first in range(0, RECEIVERS, AT_A_TIME):
                for each in both:
                    each.turns(first)
            without, told_too = (each.figures(kind) for each in both)
            for name, figure in without.items():
                figures |= {f"without: {name}": figure, f"{RECEIVERS} receivers: {name}": told_too[name]}
                figures[f"ratio: {name}"] = told_too[name] / figure
    return figures

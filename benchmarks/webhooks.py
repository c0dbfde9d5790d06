"""Webhooks: what a turn costs when its end is told to a receiver of its own, a tenth of which never answer.

Three hosts against the same fake model, a few turns of each at a time, so that all meet the machine in the
same state; two of them tell nobody, and their ratio says how far the other one can be believed. The receivers
are a process of their own. Then as many turns that nobody is told of, while those that never answer are tried
again and again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import statistics
from collections.abc import Iterator
from typing import Final

from benchmarks.principals import ground, processor_s
from benchmarks.turns import HEADERS, REPLY, SCALE, kept, percentiles, ratio, timed
from tests.running import HostProcess, free_port, new_host

RECEIVERS: Final = 1000
AT_A_TIME: Final = 20
TURNS: Final = max(int(2000 * SCALE), 2 * AT_A_TIME)
"""Of each host, in each half."""
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

    def __init__(self, host: HostProcess, told: str | None = None) -> None:
        self.host = host.start()
        self._told = told
        self.begin()
        self.some(1, told=True)
        self.begin()

    def begin(self) -> None:
        """Forget what was measured."""
        self._processor_s = processor_s(self.host)
        self.took_ms: list[float] = []

    def some(self, first: int, *, told: bool) -> None:
        """Make some turns."""
        for number in range(first, first + AT_A_TIME):
            body: dict[str, object] = {"message": REPLY}
            if told and self._told is not None:
                path = "hung" if number % HUNG == 0 else "well"
                url = f"{self._told}/{path}/{number % RECEIVERS}"
                body["webhook"] = {"url": url, "secret": SECRET}
            self.took_ms.append(timed(lambda: self._turn(body)))  # noqa: B023 - called at once

    def _turn(self, body: dict[str, object]) -> None:
        connection = kept(self.host)
        connection.request("POST", "/chat", json.dumps(body), HEADERS)
        answer = json.loads(connection.getresponse().read())
        if answer.get("status") != "success":
            raise RuntimeError(f"a turn failed: {answer}")

    def figures(self) -> dict[str, float]:
        """Return what it came to."""
        used = processor_s(self.host) - self._processor_s
        p50, p99 = percentiles(self.took_ms)
        return {"ms p50": p50, "ms p99": p99, "ms of processors": used * 1000 / len(self.took_ms)}

    def medians(self) -> list[float]:
        """Return the median of each round."""
        rounds = range(0, len(self.took_ms), AT_A_TIME)
        return [statistics.median(self.took_ms[first : first + AT_A_TIME]) for first in rounds]


async def main() -> dict[str, float]:
    """Return the figures, and their ratios."""
    return await asyncio.to_thread(measure)


def measure() -> dict[str, float]:
    """Run all hosts."""
    with ground() as (running, root, model):
        address = running.enter_context(receivers())
        hosts: dict[str, Turns] = {}
        for name, told in (("without", None), ("without, again", None), ("with", address)):
            host = new_host(root / name, model.url, {"LOG_LEVEL": "warning", "SEAL_KEY": "k" * 43})
            (host.root / "home").mkdir(parents=True, exist_ok=True)
            config = {"version": 3, "webhooks": {"allowed_hosts": ["127.0.0.1"]}}
            (host.root / "home" / "config.json").write_text(json.dumps(config))
            running.callback(host.kill)
            hosts[name] = Turns(host, told)
        return compared(hosts, "a turn that is told", told=True) | compared(hosts, "beside them", told=False)


def compared(hosts: dict[str, Turns], kind: str, *, told: bool) -> dict[str, float]:
    """Let all hosts make their turns, and return what they came to and their ratios."""
    for each in hosts.values():
        each.begin()
    for first in range(0, TURNS, AT_A_TIME):
        for each in hosts.values():
            each.some(first, told=told)
    found = {name: each.figures() for name, each in hosts.items()}
    figures = {f"{kind}: {name} ({what})": took for name in found for what, took in found[name].items()}
    for name in ("without, again", "with"):
        ratios = {what: took / found["without"][what] for what, took in found[name].items()}
        ratios["ms p50"] = ratio(hosts[name].medians(), hosts["without"].medians())
        aim = " (aim: 1.05)" if name == "with" else ""
        figures |= {f"{kind}: {name} / without ({what}){aim}": times for what, times in ratios.items()}
    return figures

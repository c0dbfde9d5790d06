"""How long what people stop goes on: a suspended principal's run, and one that another host cancels.

Each is a background run whose model never answers; measured is the time from the request that stops it to its
end, as ``GET /runs/{id}`` of its own host tells it. Tests hold that they end; how soon is told here.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

import httpx2

from benchmarks.principals import ground
from benchmarks.turns import SCALE, timed
from tests.running import directive, new_host, running_host

TIMES: Final = max(int(20 * SCALE), 2)
AIM: Final = "aim: 1000"
HANGS: Final = {"message": directive(hang=True), "background": True}
POSTGRES: Final = Path(__file__).parents[1] / ".ci" / "postgres"


async def main() -> dict[str, float]:
    """Return the figures in milliseconds; without a PostgreSQL server's programs those of one host."""
    return await asyncio.to_thread(measure)


def measure() -> dict[str, float]:
    """Measure one and then the other."""
    with ground() as (running, root, model):
        figures = suspended(root / "one", model.url)
        with contextlib.suppress(subprocess.CalledProcessError):
            url = running.enter_context(postgres())
            figures |= cancelled_elsewhere(root, model.url, url)
    return figures


def suspended(root: Path, model_url: str) -> dict[str, float]:
    """Suspend a principal while it has a run."""
    with running_host(root, model_url, {"LOG_LEVEL": "warning"}) as host, host.client() as operator:
        principal = f"/principals/{operator.post('/principals', json={'name': 'ann'}).json()['id']}"
        token = operator.post(f"{principal}/tokens", json={"name": "laptop"}).json()["token"]
        with host.client(token) as own:

            def stop(run: str) -> None:
                operator.patch(principal, json={"status": "suspended"}).raise_for_status()

            def again() -> None:
                operator.patch(principal, json={"status": "active"}).raise_for_status()

            return told("a principal is suspended: its run ends", own, operator, stop, again)


def cancelled_elsewhere(root: Path, model_url: str, url: str) -> dict[str, float]:
    """Cancel a run by way of another host."""
    settings = {"LOG_LEVEL": "warning", "DATABASE_URL": url}
    with contextlib.ExitStack() as running:
        hosts = [new_host(root / name, model_url, settings).start() for name in ("first", "second")]
        for host in hosts:
            running.callback(host.kill)
        first, second = (running.enter_context(host.client()) for host in hosts)

        def stop(run: str) -> None:
            second.post(f"{run}/cancel").raise_for_status()

        return told("another host cancels: the run ends", first, first, stop, lambda: None)


def told(
    what: str,
    begins: httpx2.Client,
    waits: httpx2.Client,
    stop: Callable[[str], None],
    again: Callable[[], None],
) -> dict[str, float]:
    """Begin and stop runs; return how long after the request to stop they ended."""
    took = []
    for _ in range(TIMES):
        run = f"/runs/{begins.post('/chat', json=HANGS).raise_for_status().json()['run_id']}"
        took.append(timed(partial(stopped, partial(stop, run), waits, run)))
        again()
    return {f"{what} (ms p50)": statistics.median(took), f"{what} (ms at most; {AIM})": max(took)}


def stopped(stop: Callable[[], None], client: httpx2.Client, run: str) -> None:
    """Return once a run that is stopped has ended; raises RuntimeError when it was not cancelled."""
    stop()
    status = client.get(run, params={"wait_ms": 30_000}).raise_for_status().json()["status"]
    if status not in ("cancelled", "error"):
        raise RuntimeError(f"the run is {status}")


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """Run a server and give its database's address; raises CalledProcessError where there is none."""
    with tempfile.TemporaryDirectory(prefix="postgres-for-benchmarks-") as root:
        folder = str(Path(root) / "server")
        Path(root).chmod(0o755)
        Path(folder).mkdir()
        started = subprocess.run([POSTGRES, "start", folder], check=True, capture_output=True, text=True)
        try:
            yield started.stdout.strip()
        finally:
            subprocess.run([POSTGRES, "remove", folder], check=True, capture_output=True)

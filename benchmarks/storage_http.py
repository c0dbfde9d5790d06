"""The same through the front door: POST /chat and POST /task by the size of the database.

``python -m benchmarks.storage_http`` starts a real host and the tests' fake model for each size; both sizes
and promise are those of ``benchmarks.storage``.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx2

from benchmarks.filling import fill
from benchmarks.storage import MESSAGE_BYTES, SIZES
from tests.running import directive, new_host, running_model

EACH = 10


def measure(size: int, folder: Path, model_url: str, rounds: int) -> dict[str, float]:
    """Return the median of each request in milliseconds."""
    host = new_host(folder, model_url)
    conversations = size // (EACH * int(MESSAGE_BYTES * 4.2))
    fill(
        Path(host.environment["LOCAL_DB_PATH"]),
        conversations=conversations,
        messages_each=EACH,
        text_bytes=MESSAGE_BYTES,
    )
    host.start()
    try:
        with host.client() as client:
            return {name: _median(call, client, rounds) for name, call in CALLS.items()}
    finally:
        host.stop()


def _chat(client: httpx2.Client, number: int) -> None:
    answer = client.post("/chat", json={"message": directive(f"turn {number}", text="fine")})
    assert answer.status_code == 200, answer.text


def _task(client: httpx2.Client, number: int) -> None:
    body = {"prompt": f"look {number}", "schedule_type": "interval", "schedule_value": "86400000"}
    answer = client.post("/task", json=body)
    assert answer.status_code == 201, answer.text


def _list(client: httpx2.Client, number: int) -> None:
    assert client.get("/chat").status_code == 200


def _health(client: httpx2.Client, number: int) -> None:
    assert client.get("/health").status_code == 200


CALLS: dict[str, Callable[[httpx2.Client, int], None]] = {
    "POST /chat": _chat,
    "POST /task": _task,
    "GET /chat": _list,
    "GET /health": _health,
}


def _median(call: Callable[[httpx2.Client, int], None], client: httpx2.Client, rounds: int) -> float:
    for number in range(10):
        call(client, -number)
    times = []
    for number in range(rounds):
        began = time.perf_counter()
        call(client, number)
        times.append((time.perf_counter() - began) * 1000)
    return statistics.median(times)


def command() -> None:
    """Measure the sizes asked for and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="*", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--rounds", type=int, default=200)
    options = parser.parse_args()
    print(f"{'median, ms':>12} " + " ".join(f"{name:>12}" for name in CALLS))
    with running_model() as model:
        for name in options.sizes:
            with tempfile.TemporaryDirectory(prefix="picoclaw-") as folder:
                medians = measure(SIZES[name], Path(folder), model.url, options.rounds)
            print(f"{name:>12} " + " ".join(f"{value:>12.2f}" for value in medians.values()), flush=True)


if __name__ == "__main__":
    command()

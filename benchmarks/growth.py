"""What the store's part of a request costs as it grows: ``python -m benchmarks.growth``.

Compares an empty database with one of 100,000 conversations, 10 million messages and 100,000 tasks
(``--conversations 1000`` for a quick look). Promise: within 2x.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio

from benchmarks.filling import T0, fill
from benchmarks.storage import one_turn
from shared.store import open_host_store
from shared.store.sqlite.store import SqliteStore

Call = Callable[[SqliteStore, int], Awaitable[object]]


async def list_conversations(store: SqliteStore, number: int) -> None:
    first = await store.conversations.page(limit=100, cursor=None)
    await store.conversations.page(limit=100, cursor=first.next_cursor)


async def read_messages(store: SqliteStore, number: int) -> None:
    await store.conversations.messages(f"conv-{number % 100:08d}", limit=100, cursor=None)


async def check_tasks(store: SqliteStore, number: int) -> None:
    """Nothing is due: what a cron caller pays every minute."""
    await store.tasks.claim_due(host="benchmark", now=T0, lease_ms=60_000)
    await store.tasks.metrics(T0)


async def health(store: SqliteStore, number: int) -> None:
    await store.counts()


async def prune(store: SqliteStore, number: int) -> None:
    await store.prune(T0, limit=100)


CALLS: dict[str, Call] = {
    "GET /chat (two pages)": list_conversations,
    "GET /chat/{id}/messages": read_messages,
    "POST /chat": one_turn,
    "POST /task/check": check_tasks,
    "GET /health": health,
    "a round of retention": prune,
}


async def measure(volume: Path, database: Path, rounds: int) -> dict[str, float]:
    """Return the median of each call in milliseconds."""
    store = open_host_store(store_dir=volume, local_db=database, owner="benchmark")
    medians = {}
    for name, call in CALLS.items():
        times = []
        for number in range(rounds):
            began = time.perf_counter()
            await call(store, number)
            times.append((time.perf_counter() - began) * 1000)
        medians[name] = statistics.median(times)
    await store.close()
    return medians


def of_size(conversations: int, messages_each: int, rounds: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="picoclaw-") as folder:
        database = Path(folder) / "local" / "pico.db"
        began = time.perf_counter()
        fill(database, conversations=conversations, messages_each=messages_each, tasks_each=1)
        took = time.perf_counter() - began
        size = database.stat().st_size / (1 << 20)
        print(f"{conversations:,} conversations of {messages_each} messages: {size:,.0f} MiB in {took:.0f} s")
        return anyio.run(measure, Path(folder) / "volume", database, rounds)


def command() -> None:
    """Compare and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--conversations", type=int, default=100_000)
    parser.add_argument("--messages-each", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=300)
    options = parser.parse_args()
    # "Empty" still fills one page of each list: a page of nothing is no comparison.
    small = of_size(201, options.messages_each, options.rounds)
    large = of_size(options.conversations, options.messages_each, options.rounds)
    print(f"{'':>24} {'empty':>9} {'full':>9} {'ratio':>6}")
    for name, value in small.items():
        print(f"{name:>24} {value:6.3f} ms {large[name]:6.3f} ms {large[name] / value:6.2f}")


if __name__ == "__main__":
    command()

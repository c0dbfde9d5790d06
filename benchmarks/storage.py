"""What an acknowledged write costs, by the size of the database: ``python -m benchmarks.storage``.

Promise: within 2x of an empty database (docs/storage.md). Also: opening, and restoring from the volume.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import anyio

from benchmarks.filling import fill
from shared.store import open_host_store
from shared.store.sqlite.store import SqliteStore
from shared.usage_values import Usage
from shared.values import NewMessage, NewRun, RunEnd, RunState

MIB = 1 << 20
SIZES = {"empty": 0, "10 MB": 10 * MIB, "200 MB": 200 * MIB, "1 GiB": 1024 * MIB}
MESSAGE_BYTES = 1000
"""Text of a message; stored for people and for the model, with keys and indexes, it is 4.2 times as much."""


@dataclass(frozen=True)
class Row:
    name: str
    stored: float
    turn: list[float]
    idle: float
    reopen: float
    restore: float

    def __str__(self) -> str:
        quantiles = statistics.quantiles(self.turn, n=100)
        return (
            f"{self.name:>8} {self.stored:9.1f} {statistics.median(self.turn):10.2f} {quantiles[98]:10.2f}"
            f" {self.idle * 1000:10.1f} {self.reopen:10.1f} {self.restore:10.0f}"
        )


async def measure(name: str, size: int, folder: Path, turns: int) -> Row:
    database, volume = folder / "local" / "pico.db", folder / "volume"
    each = 10
    fill(
        database,
        conversations=size // (each * int(MESSAGE_BYTES * 4.2)),
        messages_each=each,
        text_bytes=MESSAGE_BYTES,
    )
    store = open_host_store(store_dir=volume, local_db=database, owner="benchmark")
    stored = database.stat().st_size / MIB
    times = [await one_turn(store, number) for number in range(turns)]
    began = time.perf_counter()
    for _ in range(1000):
        await store.durable()
    idle = (time.perf_counter() - began) * 1000 / 1000
    await store.close()
    reopen = await opening(volume, database)
    shutil.rmtree(database.parent)
    restore = await opening(volume, database)
    return Row(name, stored, times, idle, reopen, restore)


async def one_turn(store: SqliteStore, number: int) -> float:
    """Store what a turn stores (its start, its end) and wait for the volume both times; in ms."""
    name = f"bench-{number}"
    question = NewMessage(f"q{number}", "user", [{"type": "text", "text": "x" * 500}], "x" * 500)
    answer = NewMessage(f"a{number}", "assistant", [{"type": "text", "text": "y" * 500}], "y" * 500)
    began = time.perf_counter()
    lease = await store.runs.begin(
        NewRun(name, name, question, owner="benchmark", now=1, lease_ms=60_000, create=True)
    )
    await store.durable()
    end = RunEnd(RunState.SUCCESS, {"result": "y" * 500}, Usage(), "model")
    await store.runs.finish(lease, end, [answer], [], 2)
    await store.durable()
    return (time.perf_counter() - began) * 1000


async def opening(volume: Path, database: Path) -> float:
    """Return how long an opening takes, in ms."""
    began = time.perf_counter()
    store = open_host_store(store_dir=volume, local_db=database, owner="benchmark")
    took = (time.perf_counter() - began) * 1000
    await store.close()
    return took


async def main() -> dict[str, float]:
    """Measure the small sizes, for ``python -m benchmarks``."""
    figures: dict[str, float] = {}
    for name in ("empty", "200 MB"):
        with tempfile.TemporaryDirectory(prefix="picoclaw-") as folder:
            row = await measure(name, SIZES[name], Path(folder), 200)
        figures[f"{name}: two durable transactions of a turn, p50 (ms)"] = statistics.median(row.turn)
        figures[f"{name}: durable() with nothing new (us)"] = row.idle * 1000
        figures[f"{name}: opening (ms)"] = row.reopen
        figures[f"{name}: restoring from the volume alone (ms)"] = row.restore
    return figures


def command() -> None:
    """Measure the sizes asked for and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="*", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--turns", type=int, default=500)
    options = parser.parse_args()
    heads = ("MiB", "turn p50", "p99 (ms)", "idle us", "open ms", "restore")
    print(f"{'size':>8} {heads[0]:>9} " + " ".join(f"{head:>10}" for head in heads[1:]))
    for name in options.sizes:
        with tempfile.TemporaryDirectory(prefix="picoclaw-") as folder:
            print(anyio.run(measure, name, SIZES[name], Path(folder), options.turns), flush=True)


if __name__ == "__main__":
    command()

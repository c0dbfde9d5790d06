"""Full: what a turn costs on a store of 1,000 principals, 10,000 conversations and 1 GiB, to an empty one.

Two hosts against the same fake model, in turns, a hundred turns of a principal at a time; a second round goes
on with all conversations. ``BENCH_SCALE`` takes a part of the rows and of the turns.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

from benchmarks.filling import fill
from benchmarks.principals import AT_A_TIME, Users, compared, ground
from benchmarks.turns import SCALE
from shared.store import open_host_store
from tests.running import running_host

PRINCIPALS: Final = max(int(1000 * SCALE), 10)
CONVERSATIONS: Final = max(int(10_000 * SCALE), 10)
MESSAGES_EACH: Final = 26
"""Of 1,000 bytes each, stored for people and for the model, with their runs: 1 GiB in all."""
TURNS: Final = max(round(10 * SCALE), 1) * AT_A_TIME


async def main() -> dict[str, float]:
    """Return the figures, and their ratios."""
    return await asyncio.to_thread(measure)


def measure() -> dict[str, float]:
    """Run both hosts."""
    with ground() as (running, root, model):
        size = _fill(root / "full")
        hosts = (running_host(root / name, model.url, {"LOG_LEVEL": "warning"}) for name in ("empty", "full"))
        users = [Users(running.enter_context(host), 1) for host in hosts]
        return {"full: MiB (aim of the ratios: 1.1)": size} | compared("empty", "full", users, TURNS)


def _fill(home: Path) -> float:
    """Make the rows and bring them to the volume; returns how many MiB they take."""
    database = home / "local" / "picoclaw.db"
    fill(
        database,
        conversations=CONVERSATIONS,
        messages_each=MESSAGES_EACH,
        text_bytes=1000,
        tasks_each=0.1,
        principals=PRINCIPALS,
    )
    store = open_host_store(store_dir=home / "store", local_db=database, owner="benchmark")
    asyncio.run(store.close())
    return database.stat().st_size / (1 << 20)

"""A process that writes and says what it was promised: one line per conversation that is durable.

Arguments: role (host or beside), STORE_DIR, the runtime database, a prefix for ids.
"""

from __future__ import annotations

import sys
from pathlib import Path

import anyio

from shared.store import open_host_store, open_store


async def write(role: str, store_dir: Path, local_db: Path, prefix: str) -> None:
    if role == "host":
        store = open_host_store(store_dir=store_dir, local_db=local_db, owner=prefix)
    else:
        store = open_store(local_db)
    print("ready", flush=True)
    number = 0

    async def one_after_the_other(lane: int) -> None:
        nonlocal number
        while True:
            number += 1
            name = f"{prefix}-{lane}-{number}"
            await store.conversations.create(name, now=number)
            await store.outbound.add(name, name, "x" * 2000, "agent", number)
            await store.durable()
            print(name, flush=True)

    async with anyio.create_task_group() as tasks:
        for lane in range(3):
            tasks.start_soon(one_after_the_other, lane)


if __name__ == "__main__":
    anyio.run(write, sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])

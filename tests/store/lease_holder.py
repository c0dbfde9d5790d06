"""A process that begins a run with a short lease, says so, and then writes whenever it is told to.

Arguments: the runtime database. It prints what came of each try: ``written`` or ``lost``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import anyio

from shared.errors import LeaseLost
from shared.store import open_store
from shared.values import NewMessage, NewRun


def message(name: str) -> NewMessage:
    return NewMessage(name, "user", [{"type": "text", "text": name}], name)


async def hold(database: Path) -> None:
    store = open_store(database)
    lease = await store.runs.begin(
        NewRun("run-old", "c", message("first"), owner="paused", now=1, lease_ms=1500)
    )
    print("begun", flush=True)
    number = 0
    while sys.stdin.readline():
        number += 1
        try:
            await store.runs.append(lease, [message(f"late{number}")], 1)
        except LeaseLost:
            print("lost", flush=True)
        else:
            print("written", flush=True)
    await store.close()


if __name__ == "__main__":
    anyio.run(hold, Path(sys.argv[1]))

"""What a claim costs with 100,000 tasks of which 1,000 are due, and whether each slot runs exactly once.

``python -m benchmarks tasks`` prints the figures. Callers claim and finish until nothing is due, eight of
them in one process (a host's concurrent POST /task/check) and eight processes beside each other.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import anyio

from benchmarks.filling import T0, fill
from shared import jsons
from shared.store.sqlite.engine import connect
from shared.store.sqlite.store import SqliteStore
from shared.task_values import TaskRunState
from shared.values import NewMessage, NewRun

TASKS = 100_000
DUE = 1000
CALLERS = 8
BUSY = 50
"""Conversations with a running run; each has a hundred due group tasks."""
GROUP_EACH = 100
LEASE_MS = 60_000
HOST = Path(__file__).parents[1]


@dataclass
class Ticks:
    """What one caller got: its slots, and how long each claim took in milliseconds."""

    slots: list[str] = field(default_factory=list)
    claims: list[float] = field(default_factory=list)


async def main() -> dict[str, float]:
    """Return the figures; raises AssertionError when a slot ran twice or not at all."""
    with tempfile.TemporaryDirectory() as folder:
        return {
            **await one_process(Path(folder) / "one.db", tasks=TASKS, due=DUE, callers=1),
            **await one_process(Path(folder) / "eight.db", tasks=TASKS, due=DUE, callers=CALLERS),
            **many_processes(Path(folder) / "many.db", tasks=TASKS, due=DUE, callers=CALLERS),
            **await behind_busy_conversations(Path(folder) / "busy.db", tasks=TASKS, busy=BUSY),
        }


async def one_process(database: Path, *, tasks: int, due: int, callers: int) -> dict[str, float]:
    """Let callers of one process run what is due."""
    make_due(database, tasks=tasks, due=due)
    store = SqliteStore(database)
    ticks = [Ticks() for _ in range(callers)]
    began = time.perf_counter()
    async with anyio.create_task_group() as group:
        for each in ticks:
            group.start_soon(tick, store, each)
    seconds = time.perf_counter() - began
    await store.close()
    return figures(f"{callers} caller(s), one process", ticks, due, seconds)


def many_processes(database: Path, *, tasks: int, due: int, callers: int) -> dict[str, float]:
    """Let callers in processes of their own run what is due."""
    make_due(database, tasks=tasks, due=due)
    command = [sys.executable, "-m", "benchmarks.tasks", str(database)]
    children = [
        subprocess.Popen(command, cwd=HOST, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(callers)
    ]
    for child in children:
        assert child.stdout is not None
        child.stdout.readline()
    began = time.perf_counter()
    # All are up: now they start together.
    for child in children:
        assert child.stdin is not None
        child.stdin.write(b"go\n")
        child.stdin.flush()
    ticks = [Ticks(**jsons.loads(child.communicate(timeout=120)[0])) for child in children]
    return figures(f"{callers} processes", ticks, due, time.perf_counter() - began)


async def behind_busy_conversations(database: Path, *, tasks: int, busy: int) -> dict[str, float]:
    """Claim an isolated task that is due behind the group tasks of conversations that are busy."""
    make_due(database, tasks=tasks, due=10, group_each=GROUP_EACH, busy=busy)
    store = SqliteStore(database)
    for number in range(busy):
        message = NewMessage(f"msg-busy-{number}", "user", [], text="hello")
        await store.runs.begin(
            NewRun(f"run-{number}", f"conv-{number:08d}", message, owner="a", now=T0, lease_ms=LEASE_MS)
        )
    ticks = Ticks()
    await tick(store, ticks)
    await store.close()
    label = f"behind {busy * GROUP_EACH:,} waiting group tasks"
    return {
        f"first claim {label}, ms": ticks.claims[0],
        f"later claims {label}, median ms": statistics.median(ticks.claims[1:]),
    }


async def tick(store: SqliteStore, ticks: Ticks) -> None:
    """Claim and finish until nothing is due."""
    while True:
        began = time.perf_counter()
        claimed = await store.tasks.claim_due(host="a", now=T0, lease_ms=LEASE_MS)
        ticks.claims.append((time.perf_counter() - began) * 1000)
        if claimed is None:
            return
        task, claim = claimed
        ticks.slots.append(f"{task.id} {claim.slot}")
        await anyio.lowlevel.checkpoint()
        await store.tasks.finish(claim, state=TaskRunState.SUCCESS, result="ok", error=None, now=T0)


def figures(label: str, ticks: Iterable[Ticks], due: int, seconds: float) -> dict[str, float]:
    """Check that every slot ran once, and sum up what the claims cost."""
    slots = [slot for each in ticks for slot in each.slots]
    assert len(slots) == len(set(slots)) == due, f"{len(slots)} runs of {len(set(slots))} slots for {due} due"
    claims = [cost for each in ticks for cost in each.claims]
    return {
        f"claim, {label}, median ms": statistics.median(claims),
        f"claim, {label}, 99 % ms": statistics.quantiles(claims, n=100)[98],
        f"claim, {label}, worst ms": max(claims),
        f"slots claimed and finished, {label}, per second": due / seconds,
    }


def make_due(database: Path, *, tasks: int, due: int, group_each: int = 0, busy: int = 0) -> None:
    """Make a database of that many tasks, some due in the same minute, some of busy conversations before."""
    fill(database, conversations=tasks, messages_each=0, tasks_each=1)
    connection = connect(database, busy_ms=1000)
    connection.execute("UPDATE scheduled_tasks SET next_run = ? WHERE number > ?", (T0, tasks - due))
    connection.execute(
        """UPDATE scheduled_tasks SET next_run = ?, context_mode = 'group',
        conversation_id = printf('conv-%08d', (number - 1) / ?) WHERE number <= ?""",
        (T0 - 1000, max(group_each, 1), group_each * busy),
    )
    connection.close()


async def child(database: Path) -> None:
    """Be one of many processes: say that it is up, wait for the word, run what is due."""
    store = SqliteStore(database)
    print("up", flush=True)
    sys.stdin.readline()
    ticks = Ticks()
    await tick(store, ticks)
    print(jsons.dumps({"slots": ticks.slots, "claims": ticks.claims}))
    await store.close()


if __name__ == "__main__":
    anyio.run(child, Path(sys.argv[1]))

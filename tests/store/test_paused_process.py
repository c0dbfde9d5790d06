"""A process that was stopped for longer than its lease writes nothing when it goes on."""

from __future__ import annotations

import signal
import subprocess
import sys

import anyio
import pytest

from shared.errors import Unavailable
from shared.store.sqlite import engine
from shared.store.sqlite.transactions import lease_now
from shared.values import NewMessage, NewRun
from tests.store.places import Places


async def test_a_process_paused_for_longer_than_its_lease_writes_nothing(places: Places) -> None:
    async with places.host() as store:
        await store.conversations.create("c", 1)
        await store.durable()
        holder = subprocess.Popen(
            [sys.executable, "-m", "tests.store.lease_holder", places.database],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert _ask(holder, None) == "begun"
            assert _ask(holder, "write") == "written"
            holder.send_signal(signal.SIGSTOP)
            until = lease_now() + 1500
            with anyio.fail_after(60):
                while not await store.runs.recover(2):
                    await anyio.sleep(0.02)
            assert lease_now() <= until + 1000
            message = NewMessage("second", "user", [], "second")
            await store.runs.begin(NewRun("run-new", "c", message, owner="host", now=2, lease_ms=60_000))
            holder.send_signal(signal.SIGCONT)
            assert _ask(holder, "write") == "lost"
            history = await store.conversations.history("c")
            assert [entry.run_id for entry in history] == ["run-old", "run-old", "run-new"]
        finally:
            holder.send_signal(signal.SIGCONT)
            holder.communicate(timeout=60)


async def test_a_process_paused_inside_a_write_makes_others_fail_and_not_hang(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gate is asked for with a deadline, so that one stopped process doesn't stop the host for good."""
    async with places.host() as store:
        stopped = subprocess.Popen(
            [sys.executable, "-c", HOLD_THE_GATE, f"{places.database}.gate"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert _ask(stopped, None) == "held"
            stopped.send_signal(signal.SIGSTOP)
            monkeypatch.setattr(engine, "BUSY_MS", 200)
            with anyio.fail_after(60), pytest.raises(Unavailable, match="busy"):
                await store.conversations.create("c", 1)
        finally:
            stopped.kill()
            stopped.communicate()
        await store.conversations.create("c", 1)
        await store.durable()


HOLD_THE_GATE = """
import fcntl, sys
file = open(sys.argv[1], "r+")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def _ask(process: subprocess.Popen[str], line: str | None) -> str:
    assert process.stdin is not None
    assert process.stdout is not None
    if line is not None:
        process.stdin.write(f"{line}\n")
        process.stdin.flush()
    return process.stdout.readline().strip()

"""Nothing grows with use: processes, descriptors, memory; and many conversations at once stay small."""

from __future__ import annotations

import contextlib
import statistics
from pathlib import Path

import anyio
import psutil
import pytest

from host.sandbox.client import Sandbox
from host.sandbox.file_workers import MAX_WORKERS
from host.sandbox.policy import Limits, SandboxPolicy
from host.sandbox.worker.exec.reapers import WARM
from host.tools.files_and_commands import SandboxToolset
from tests.only_root import only_root
from tests.sandbox.opened import toolset

SHORT = 120
FULL = 1000
CALLERS = 4


def supervisor(sandbox: Sandbox) -> psutil.Process:
    assert sandbox.supervisor is not None
    return psutil.Process(sandbox.supervisor.process.pid)


def workers(sandbox: Sandbox) -> list[psutil.Process]:
    """Return the file workers: children of the supervisor that have none of their own."""
    return [p for p in supervisor(sandbox).children() if not p.children()]


async def settled(sandbox: Sandbox, most: int) -> None:
    """Wait until no more than ``most`` processes are below the supervisor, none of them a zombie."""
    with anyio.fail_after(60):
        while True:
            below = supervisor(sandbox).children(recursive=True)
            with contextlib.suppress(psutil.NoSuchProcess):  # it was about to end: look again
                states = [p.status() for p in below]
                if len(below) <= most and psutil.STATUS_ZOMBIE not in states:
                    return
            await anyio.sleep(0.02)


async def run_many(sandbox: Sandbox, times: int) -> None:
    async def caller(tools: SandboxToolset) -> None:
        for number in range(times // CALLERS):
            result = await tools.call("exec", {"command": f"echo {number} & setsid true; cat ok.txt"})
            assert not result.is_error
            await tools.call("read_file", {"path": "ok.txt"})
        # As a run does at its end.
        if tools.changes is not None:
            tools.changes.forget()

    async with anyio.create_task_group() as group:
        for number in range(CALLERS):
            group.start_soon(caller, toolset(sandbox, f"conv-{number}"))


@only_root
@pytest.mark.parametrize("times", [SHORT, pytest.param(FULL, marks=pytest.mark.slow)])
async def test_many_runs_leave_no_zombie_no_descriptor_and_no_memory(sandbox: Sandbox, times: int) -> None:
    await run_many(sandbox, 40)
    most = CALLERS + 2 * WARM + 2 * CALLERS  # workers, reapers that wait for anybody or for one conversation
    await settled(sandbox, most)
    ours, theirs = psutil.Process(), supervisor(sandbox)
    descriptors = ours.num_fds(), theirs.num_fds()
    memory = theirs.memory_info().rss
    await run_many(sandbox, times)
    await settled(sandbox, most)
    assert (ours.num_fds(), theirs.num_fds()) == descriptors
    assert theirs.memory_info().rss - memory < 2 << 20


@only_root
async def test_two_hundred_conversations_have_a_small_worker_each(sandbox: Sandbox) -> None:
    for number in range(200):
        result = await toolset(sandbox, f"conv-{number}").call("read_file", {"path": "ok.txt"})
        assert not result.is_error
    found = workers(sandbox)
    assert len(found) >= 200
    sizes = [process.memory_full_info().pss for process in found[:40]]
    assert statistics.median(sizes) < 12 << 20
    assert max(sizes) < 12 << 20


async def test_the_worker_idle_longest_makes_room(sandbox: Sandbox) -> None:
    for number in range(MAX_WORKERS + 8):
        result = await toolset(sandbox, f"conv-{number}").call("read_file", {"path": "ok.txt"})
        assert not result.is_error
    await settled(sandbox, MAX_WORKERS + 2 * WARM)
    assert not (await toolset(sandbox, "conv-0").call("read_file", {"path": "ok.txt"})).is_error


async def test_a_worker_that_nobody_needs_is_ended(ws: Path) -> None:
    async with Sandbox(SandboxPolicy(workspace=ws, limits=Limits(worker_idle_s=0.2))) as sandbox:
        for number in range(3):
            await toolset(sandbox, f"conv-{number}").call("read_file", {"path": "ok.txt"})
        await settled(sandbox, 2 * WARM)
        assert not (await toolset(sandbox, "conv-0").call("read_file", {"path": "ok.txt"})).is_error

"""Processes of the sandbox as seen from outside, where their numbers are other than inside."""

from __future__ import annotations

import anyio
import psutil


def pids_of(word: str) -> list[int]:
    """Return who has ``word`` as an argument of its command line."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if word in (process.info["cmdline"] or []):
            found.append(process.pid)
    return found


async def started(word: str) -> int:
    """Wait for one process with ``word`` as an argument."""
    with anyio.fail_after(60):
        while not (pids := pids_of(word)):
            await anyio.sleep(0.005)
    return pids[0]


async def gone(pid: int) -> None:
    """Wait until a process is no more."""
    with anyio.fail_after(60):
        while psutil.pid_exists(pid):
            await anyio.sleep(0.005)

"""What a tool server costs: start, call, throughput, memory; and an outside agent's first answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median

import anyio
import psutil

from host.mcp_clients.tool_servers import ToolServers, ToolServerToolset
from shared.store import open_store

SESSIONS = 60
CALLS = 2000
SIDE_BY_SIDE = 16
LIST = "mcp__picoclaw__list_tasks"
SEND = "mcp__picoclaw__send_message"
MEBIBYTE = 2**20


async def main() -> dict[str, float]:
    """Return the figures; times in milliseconds, memory in MiB."""
    with tempfile.TemporaryDirectory() as directory:
        database = Path(directory) / "picoclaw.db"
        store = open_store(database)
        try:
            started = time.perf_counter()
            async with ToolServers(db_path=database, store_dir=None, timezone="UTC") as servers:
                await servers.zygote.ready()
                figures = {"zygote ready, ms (behind the start)": _ms(started)}
                figures |= await _sessions(servers)
                figures |= await _calls(servers.toolset("conv-0", is_main=False))
                figures |= _memory(servers)
                figures["outside agent beside a host, first answer, ms"] = await _outside(database)
            figures["outside agent alone, first answer, ms"] = await _outside(database)
        finally:
            await store.close()
    return figures


async def _sessions(servers: ToolServers) -> dict[str, float]:
    times = []
    for number in range(SESSIONS):
        toolset = servers.toolset(f"conv-{number}", is_main=False)
        times.append(await _timed(toolset.open))
    return {"session start, p50 ms": median(times), "session start, worst ms": max(times)}


async def _calls(toolset: ToolServerToolset) -> dict[str, float]:
    figures = {}
    for label, name, arguments in (("read", LIST, {}), ("write", SEND, {"text": "hello"})):

        async def call(name: str = name, arguments: dict[str, str] = arguments) -> None:
            result = await toolset.call(name, arguments)
            if result.is_error:
                raise RuntimeError(result.text)

        await call()
        times = [await _timed(call) for _ in range(CALLS)]
        figures[f"{label} call, p50 ms"] = median(times)
        figures[f"{label} calls a second, one session, {SIDE_BY_SIDE} at once"] = await _rate(call)
    return figures


async def _rate(call: Callable[[], Awaitable[None]]) -> float:
    async def some() -> None:
        for _ in range(CALLS // SIDE_BY_SIDE):
            await call()

    started = time.perf_counter()
    async with anyio.create_task_group() as group:
        for _ in range(SIDE_BY_SIDE):
            group.start_soon(some)
    return CALLS // SIDE_BY_SIDE * SIDE_BY_SIDE / (time.perf_counter() - started)


def _memory(servers: ToolServers) -> dict[str, float]:
    zygote = psutil.Process(servers.zygote.pid)
    idle = [child.memory_full_info().pss / MEBIBYTE for child in zygote.children()]
    return {
        "zygote, PSS MiB": zygote.memory_full_info().pss / MEBIBYTE,
        "idle session, PSS MiB": median(idle),
    }


async def _outside(database: Path) -> float:
    environment = {
        "PATH": os.environ["PATH"],
        "PICOCLAW_DB_PATH": str(database),
        "PICOCLAW_CONVERSATION_ID": "laptop",
    }
    return median([await anyio.to_thread.run_sync(_first_answer, environment) for _ in range(7)])


def _first_answer(environment: dict[str, str]) -> float:
    me = {"name": "bench", "version": "1"}
    hello = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": me}
    request = (
        json.dumps({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello}).encode() + b"\n"
    )
    started = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", "mcp_server"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(request)
        server.stdin.flush()
        server.stdout.readline()
        took = _ms(started)
        server.stdin.close()
    return took


async def _timed(work: Callable[[], Awaitable[None]]) -> float:
    started = time.perf_counter()
    await work()
    return _ms(started)


def _ms(started: float) -> float:
    return (time.perf_counter() - started) * 1000

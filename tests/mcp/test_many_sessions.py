"""Many tool servers at once and one after the other: bounded, small, and nothing left of them."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import psutil
import pytest

from host.mcp_clients.tool_servers import ToolServers
from shared import jsons
from shared.store.store import Store
from tests.mcp.test_tool_servers import LIST, SEND, eventually, zygote_of

MIB = 1024 * 1024
CONVERSATIONS = 200
MOST = 48


@pytest.fixture
async def servers(database: Path, store: Store) -> AsyncIterator[ToolServers]:
    async with ToolServers(db_path=database, store_dir=None, timezone="UTC", max_sessions=MOST) as servers:
        with anyio.fail_after(60):
            await servers.zygote.ready()
        yield servers


async def test_two_hundred_conversations_share_the_places_and_lose_nothing(
    servers: ToolServers, store: Store
) -> None:
    async def say(number: int) -> None:
        said = await servers.toolset(f"conv-{number}", is_main=False).call(SEND, {"text": str(number)})
        assert jsons.loads(said.text)["conversation_id"] == f"conv-{number}"
        assert len(servers.sessions) <= MOST

    for start in range(0, CONVERSATIONS, 8):
        async with anyio.create_task_group() as group:
            for number in range(start, start + 8):
                group.start_soon(say, number)
    zygote = zygote_of(servers)
    await eventually(lambda: len(zygote.children()) == MOST == len(servers.sessions))
    # A conversation whose session made room gets a new one, as if nothing had been.
    assert not (await servers.toolset("conv-0", is_main=False).call(LIST, {})).is_error
    for number in (0, 57, CONVERSATIONS - 1):
        (heard,) = await store.outbound.said_by(f"conv-{number}", after=0)
        assert heard.text == str(number)
    sizes = []
    for child in zygote.children():
        with contextlib.suppress(psutil.NoSuchProcess):  # its session made room
            sizes.append(child.memory_full_info().pss)
    assert statistics.median(sizes) < 12 * MIB


@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.slow)])
async def test_sessions_leave_no_process_no_descriptor_and_no_memory(
    servers: ToolServers, count: int
) -> None:
    async def some(sessions: int) -> None:
        for number in range(sessions):
            await servers.toolset(f"conv-{number % 7}", is_main=False).open()
            await servers.forget(f"conv-{number % 7}")

    await some(30)
    me, zygote = psutil.Process(), zygote_of(servers)
    await eventually(lambda: zygote.children() == [])
    descriptors = (me.num_fds(), zygote.num_fds())
    memory = (me.memory_full_info().uss, zygote.memory_full_info().uss)
    await some(count)
    await eventually(lambda: zygote.children() == [])
    assert (me.num_fds(), zygote.num_fds()) == descriptors
    grown = [
        after - before
        for after, before in zip(
            (me.memory_full_info().uss, zygote.memory_full_info().uss), memory, strict=True
        )
    ]
    assert max(grown) < 2 * MIB

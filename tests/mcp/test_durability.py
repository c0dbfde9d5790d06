"""What a tool has answered is on the volume, whoever is killed; and many sessions leave nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import anyio
import psutil
import pytest

from host.mcp_clients.tool_servers import ToolServers
from shared import jsons
from shared.principals import Reach
from shared.store import open_host_store
from tests.mcp.running import RawServer, environment
from tests.mcp.test_tool_servers import HOURLY, SEND, eventually, zygote_of


async def on_the_volume(volume: Path, copy: Path, conversation_id: str) -> tuple[list[str], list[str]]:
    """Return the messages and tasks a host would find that has nothing but a copy of the volume."""
    shutil.copytree(volume, copy / "volume", ignore=shutil.ignore_patterns("*.lock"))
    store = open_host_store(store_dir=copy / "volume", local_db=copy / "local.db", owner="another")
    try:
        said = await store.outbound.said_by(conversation_id, after=0)
        tasks = await store.tasks.page(Reach(conversation_id), status=None, limit=100, cursor=None)
        return [message.text for message in said], [task.id for task in tasks.items]
    finally:
        await store.close()


@pytest.mark.usefixtures("warmed")
async def test_what_a_tool_answered_is_on_the_volume(tmp_path: Path) -> None:
    volume, database = tmp_path / "volume", tmp_path / "local" / "picoclaw.db"
    database.parent.mkdir()
    host = open_host_store(store_dir=volume, local_db=database, owner="host")
    try:
        async with ToolServers(db_path=database, store_dir=volume, timezone="UTC") as servers:
            tools = servers.toolset("conv-a", is_main=False)
            texts = [str(number) for number in range(20)]
            for text in texts:
                assert not (await tools.call(SEND, {"text": text})).is_error
            task = jsons.loads((await tools.call("mcp__picoclaw__schedule_task", HOURLY)).text)["id"]
            for child in zygote_of(servers).children():
                child.kill()
            assert await on_the_volume(volume, tmp_path / "one", "conv-a") == (texts, [task])
            await tools.call("mcp__picoclaw__cancel_task", {"task_id": task})
            assert await on_the_volume(volume, tmp_path / "two", "conv-a") == (texts, [])
    finally:
        await host.close()


async def test_an_outside_agents_message_is_on_the_volume_although_it_was_never_told_where_that_is(
    tmp_path: Path,
) -> None:
    volume, database = tmp_path / "volume", tmp_path / "picoclaw.db"
    host = open_host_store(store_dir=volume, local_db=database, owner="host")
    try:
        async with RawServer(environment(database, "laptop")) as server:
            await server.hello()
            assert not (await server.tool("send_message", text="kept"))["isError"]
            server.process.kill()
        assert (await on_the_volume(volume, tmp_path / "copy", "laptop"))[0] == ["kept"]
    finally:
        await host.close()


@pytest.mark.slow
async def test_two_hundred_conversations_and_a_thousand_sessions_leave_nothing(database: Path) -> None:
    async with ToolServers(db_path=database, store_dir=None, timezone="UTC", kept_sessions=256) as servers:
        for number in range(200):
            assert not (
                await servers.toolset(f"conv-{number}", is_main=False).call(SEND, {"text": "x"})
            ).is_error
        assert len(servers.sessions) == len(zygote_of(servers).children()) == 200
        for number in range(200):
            await servers.forget(f"conv-{number}")
        await eventually(lambda: zygote_of(servers).children() == [])
        me, zygote = psutil.Process(), zygote_of(servers)
        before = [(process.num_fds(), process.memory_full_info().uss) for process in (me, zygote)]
        for number in range(1000):
            await servers.toolset(f"conv-{number % 50}", is_main=False).open()
            await servers.forget(f"conv-{number % 50}")
        await eventually(lambda: zygote.children() == [])
        await anyio.sleep(0)
        after = [(process.num_fds(), process.memory_full_info().uss) for process in (me, zygote)]
        assert [fds for fds, _ in after] == [fds for fds, _ in before]
        assert all(late - early < 4 * 2**20 for (_, early), (_, late) in zip(before, after, strict=True))

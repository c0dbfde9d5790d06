"""The host's side: sessions on demand, one per conversation, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import anyio
import psutil
import pytest

from host.mcp_clients.tool_servers import ToolServers
from host.ports import ToolResult
from shared import jsons
from shared.principals import Reach
from shared.store.store import Store
from shared.tool_contract import tool_declarations

SEND = "mcp__picoclaw__send_message"
LIST = "mcp__picoclaw__list_tasks"
HOURLY = {"prompt": "x", "schedule_type": "interval", "schedule_value": "3600000"}


@pytest.fixture
async def servers(database: Path, store: Store, warmed: None) -> AsyncIterator[ToolServers]:
    async with ToolServers(db_path=database, store_dir=None, timezone="Europe/Berlin") as servers:
        yield servers


async def eventually(true: Callable[[], bool]) -> None:
    with anyio.fail_after(60):
        while not true():
            await anyio.sleep(0.01)


def zygote_of(servers: ToolServers) -> psutil.Process:
    assert servers.zygote.pid is not None
    return psutil.Process(servers.zygote.pid)


async def test_tools_are_known_without_a_session(servers: ToolServers) -> None:
    specs = servers.toolset("conv-a", is_main=False).specs
    assert [spec.name for spec in specs] == [
        f"mcp__picoclaw__{name}" for name in tool_declarations(is_main=False)
    ]
    assert all(spec.input_schema["additionalProperties"] is False for spec in specs)
    assert {spec.name for spec in specs if spec.read_only} == {
        "mcp__picoclaw__list_tasks",
        "mcp__picoclaw__get_task",
        "mcp__picoclaw__list_task_runs",
    }
    assert len(servers.sessions) == 0


async def test_a_call_opens_the_session_of_its_conversation(servers: ToolServers, store: Store) -> None:
    mine, theirs = (servers.toolset(name, is_main=False) for name in ("conv-a", "conv-b"))
    task = jsons.loads((await mine.call("mcp__picoclaw__schedule_task", HOURLY)).text)
    assert task["timezone"] == "Europe/Berlin"
    assert jsons.loads((await theirs.call(LIST, {})).text)["tasks"] == []
    foreign = await theirs.call("mcp__picoclaw__cancel_task", {"task_id": task["id"]})
    assert foreign == ToolResult("Task not found or access denied.", is_error=True)
    boss = servers.toolset("main", is_main=True)
    assert task["id"] in (await boss.call(LIST, {})).text
    assert len(servers.sessions) == 3
    assert await store.tasks.get(task["id"], Reach("conv-a")) is not None


async def test_opening_beside_other_work_and_calling_at_once_give_one_session(servers: ToolServers) -> None:
    tools = servers.toolset("conv-a", is_main=False)
    async with anyio.create_task_group() as group:
        group.start_soon(tools.open)
        for _ in range(5):
            group.start_soon(servers.toolset("conv-a", is_main=False).call, LIST, {})
    assert len(servers.sessions) == 1
    assert len(zygote_of(servers).children()) == 1


async def test_bad_arguments_and_unknown_tools_are_results(servers: ToolServers) -> None:
    tools = servers.toolset("conv-a", is_main=False)
    assert await tools.call(SEND, {}) == ToolResult("text: is required", is_error=True)
    assert await tools.call("mcp__picoclaw__no", {}) == ToolResult("Unknown tool.", is_error=True)
    assert (await tools.call("read_file", {})).is_error


async def test_a_tool_server_that_dies_is_an_error_and_the_next_call_has_a_new_one(
    servers: ToolServers,
) -> None:
    tools = servers.toolset("conv-a", is_main=False)
    await tools.open()
    (child,) = zygote_of(servers).children()
    child.suspend()
    answers: list[ToolResult] = []

    async def call() -> None:
        answers.append(await tools.call(SEND, {"text": "lost"}))

    async with anyio.create_task_group() as group:
        group.start_soon(call)
        await eventually(lambda: any(each.busy for each in servers.sessions.values()))
        child.kill()
    (answer,) = answers
    assert answer.is_error
    assert "may have taken effect" in answer.text
    assert not (await tools.call(SEND, {"text": "again"})).is_error
    assert len(servers.sessions) == 1


async def test_of_a_call_whose_tool_server_does_not_start_nothing_was_done(tmp_path: Path) -> None:
    (unreadable := tmp_path / "picoclaw.db").write_text("no database")
    async with ToolServers(db_path=unreadable, store_dir=None, timezone="UTC") as servers:
        answer = await servers.toolset("conv-a", is_main=False).call(SEND, {"text": "never said"})
    said = "The tool server could not be started, and nothing was done; try again."
    assert answer == ToolResult(said, is_error=True)


async def test_a_zygote_that_dies_is_started_again(servers: ToolServers) -> None:
    tools = servers.toolset("conv-a", is_main=False)
    await tools.open()
    first = servers.zygote.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    await eventually(lambda: servers.zygote.pid not in (None, first))
    # The session outlived it; a new conversation is served by the new one.
    assert not (await tools.call(SEND, {"text": "still here"})).is_error
    assert not (await servers.toolset("conv-b", is_main=False).call(SEND, {"text": "x"})).is_error


async def test_a_signal_to_all_processes_leaves_the_tools_to_the_runs_being_finished(
    servers: ToolServers,
) -> None:
    tools = servers.toolset("conv-a", is_main=False)
    await tools.open()
    first = servers.zygote.pid
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        for process in (*zygote_of(servers).children(), zygote_of(servers)):
            process.send_signal(number)
    assert not (await tools.call(SEND, {"text": "still here"})).is_error
    assert not (await servers.toolset("conv-b", is_main=False).call(SEND, {"text": "x"})).is_error
    assert servers.zygote.pid == first


async def test_a_cancelled_call_does_not_poison_the_session(servers: ToolServers, store: Store) -> None:
    tools = servers.toolset("conv-a", is_main=False)
    await tools.open()
    for delay in (0.0, 0.0001, 0.0003, 0.001):
        with anyio.move_on_after(delay):
            await tools.call(SEND, {"text": "cancelled"})
        assert not (await tools.call(SEND, {"text": "kept"})).is_error
    assert len(servers.sessions) == 1
    texts = [message.text for message in await store.outbound.said_by("conv-a", after=0)]
    assert texts.count("kept") == 4
    assert texts.count("cancelled") <= 4


async def test_a_cancelled_start_leaves_nothing_that_the_next_call_trips_over(servers: ToolServers) -> None:
    tools = servers.toolset("conv-a", is_main=False)
    for delay in (0.0, 0.001, 0.004):
        with anyio.move_on_after(delay):
            await tools.open()
        await servers.forget("conv-a")
    assert not (await tools.call(LIST, {})).is_error
    await eventually(lambda: len(zygote_of(servers).children()) == 1)


@pytest.mark.usefixtures("warmed")
async def test_the_longest_unused_session_makes_room(database: Path, store: Store) -> None:
    async with ToolServers(db_path=database, store_dir=None, timezone="UTC", max_sessions=3) as servers:
        for number in range(10):
            assert not (await servers.toolset(f"conv-{number}", is_main=False).call(LIST, {})).is_error
        assert len(servers.sessions) == 3
        await eventually(lambda: len(zygote_of(servers).children()) == 3)


@pytest.mark.usefixtures("warmed")
async def test_an_idle_session_is_closed(database: Path, store: Store) -> None:
    async with ToolServers(db_path=database, store_dir=None, timezone="UTC", idle_seconds=0.2) as servers:
        tools = servers.toolset("conv-a", is_main=False)
        await tools.open()
        await eventually(lambda: len(servers.sessions) == 0)
        await eventually(lambda: zygote_of(servers).children() == [])
        assert not (await tools.call(LIST, {})).is_error


async def test_a_tool_server_has_nothing_of_the_hosts_environment(
    database: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-secret")
    monkeypatch.setenv("API_TOKEN", "secret")
    async with ToolServers(db_path=database, store_dir=None, timezone="UTC") as servers:
        await servers.toolset("conv-a", is_main=False).open()
        (child,) = zygote_of(servers).children()
        allowed = {"PICOCLAW_DB_PATH", "MAX_TASKS_PER_CONVERSATION", "TZ", "LANG", "LC_CTYPE"}
        allowed |= {"PYDANTIC_DISABLE_PLUGINS", "TMPDIR"}
        assert set(zygote_of(servers).environ()) | set(child.environ()) <= allowed
        # stdin, stdout, stderr, the two ends of its wire, and its own; nothing of the host's or the zygote's.
        names = {open_file.path for open_file in child.open_files()}
        assert [name for name in names if not name.startswith((str(database), "/dev/null"))] == []


@pytest.mark.usefixtures("warmed")
@pytest.mark.parametrize("way", ["leave", "cancel"])
async def test_the_end_of_the_host_is_the_end_of_its_tool_servers(
    database: Path, store: Store, way: str
) -> None:
    processes: list[psutil.Process] = []
    with anyio.CancelScope() as scope:
        async with ToolServers(db_path=database, store_dir=None, timezone="UTC") as servers:
            for number in range(3):
                await servers.toolset(f"conv-{number}", is_main=False).open()
            processes = [zygote_of(servers), *zygote_of(servers).children()]
            if way == "cancel":
                scope.cancel()
                await anyio.sleep(0)
    assert len(processes) == 4
    await eventually(lambda: not any(process.is_running() for process in processes))


@pytest.mark.usefixtures("warmed")
async def test_entering_and_leaving_at_once_leaves_no_process(database: Path, store: Store) -> None:
    before = set(psutil.Process().children(recursive=True))
    async with ToolServers(db_path=database, store_dir=None, timezone="UTC"):
        pass
    assert set(psutil.Process().children(recursive=True)) <= before


async def test_a_killed_host_takes_its_tool_servers_along(database: Path, store: Store) -> None:
    async with await anyio.open_process([sys.executable, "-c", HOST, str(database)], stderr=None) as host:
        assert host.stdout is not None
        with anyio.fail_after(60):
            zygote = psutil.Process(int(await host.stdout.receive()))
        await eventually(lambda: len(zygote.children()) == 1)
        processes = [zygote, *zygote.children()]
        host.kill()
        await host.wait()
        await eventually(lambda: not any(process.is_running() for process in processes))


HOST = """
import anyio, pathlib, sys
from host.mcp_clients.tool_servers import ToolServers
async def main():
    async with ToolServers(db_path=pathlib.Path(sys.argv[1]), store_dir=None, timezone="UTC") as servers:
        await servers.toolset("conv-a", is_main=False).open()
        print(servers.zygote.pid, flush=True)
        await anyio.sleep(60)
anyio.run(main)
"""


async def test_the_host_does_not_import_the_sdk_for_its_own_tool_server() -> None:
    program = "import sys, host.mcp_clients.tool_servers; sys.exit('mcp' in sys.modules)"
    finished = await anyio.run_process([sys.executable, "-c", program], stderr=subprocess.STDOUT, check=False)
    assert finished.returncode == 0, finished.stdout

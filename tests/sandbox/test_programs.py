"""Programs that talk through stdin and stdout, MCP servers above all: confined, and gone at the end."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import anyio
import psutil
import pytest

from host.mcp_clients.external import ExternalServers, Reach, open_external
from host.mcp_clients.server_config import ServerConfig
from host.ports import SandboxFault, ToolResult, Workspace
from host.sandbox.client import Sandbox
from host.sandbox.policy import Limits, SandboxPolicy
from tests.only_root import only_root
from tests.sandbox.opened import private_directory, toolset
from tests.sandbox.processes import gone, pids_of, started

SERVER = Path(__file__).parent / "stdio_server.py"


@pytest.fixture(autouse=True)
def server(ws: Path) -> None:
    shutil.copy(SERVER, ws / "server.py")


def inside(**more: object) -> ServerConfig:
    fields = {"command": "python3", "args": ("-I", "server.py"), "env": {"ONLY": "this"}, **more}
    return ServerConfig(type="stdio", **fields)  # type: ignore[arg-type] # any field


@asynccontextmanager
async def opened(
    sandbox: Sandbox, config: ServerConfig, conversation: str = "c"
) -> AsyncIterator[ExternalServers]:
    reach = Reach(spawn=partial(sandbox.program, Workspace(conversation, sandbox.root)), connect_seconds=50)
    with anyio.fail_after(60):
        async with open_external({"p": config}, reach) as found:
            yield found


async def call(found: ExternalServers, tool: str, **arguments: object) -> ToolResult:
    (toolset,) = found.toolsets
    return await toolset.call(f"mcp__p__{tool}", arguments)


async def test_a_server_works_inside_with_nothing_of_the_hosts_environment(
    sandbox: Sandbox, ws: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("API_TOKEN", "CANARY-environment")
    async with opened(sandbox, inside()) as found:
        assert found.problems == []
        seen = (await call(found, "environment")).text
        assert "ONLY=this" in seen
        assert "CANARY" not in seen
        assert f"TMPDIR={await private_directory(sandbox, 'c')}" in seen
        assert not (await call(found, "write", path="made.txt", text="by a tool")).is_error
    assert (ws / "made.txt").read_text() == "by a tool"


async def test_what_is_outside_stays_closed_to_a_server(sandbox: Sandbox, place: Path) -> None:
    secret = place / "outside" / "secret.txt"
    async with opened(sandbox, inside()) as found:
        for path in (secret, f"/proc/{os.getpid()}/environ", "/etc/shadow", "../outside/secret.txt"):
            assert (await call(found, "read", path=str(path))).is_error
        assert (await call(found, "write", path=str(secret), text="x")).is_error
        seen = (await call(found, "run", command=f"x={place}; cat $x/outside/*; kill -9 {os.getpid()}")).text
        assert "outside-secret" not in seen
    assert secret.read_text() == "outside-secret\n"


async def test_a_server_ends_with_the_run_and_with_it_all_it_started(sandbox: Sandbox) -> None:
    async with opened(sandbox, inside(args=("-I", "server.py", "word-of-this-test"))) as found:
        assert (await call(found, "leave_a_child_behind")).text
        (server,) = pids_of("word-of-this-test")
        (child,) = psutil.Process(server).children()
    await gone(server)
    await gone(child.pid)


async def test_a_server_that_dies_gives_errors_and_the_run_goes_on(sandbox: Sandbox) -> None:
    async with opened(sandbox, inside(timeout_ms=3000)) as found:
        assert (await call(found, "die")).is_error
        assert (await call(found, "environment")).is_error
    assert not (await toolset(sandbox, "c").call("exec", {"command": "true"})).is_error


async def test_a_call_that_hangs_ends_at_its_time_limit_and_the_server_with_the_run(sandbox: Sandbox) -> None:
    async with opened(sandbox, inside(timeout_ms=500, args=("-I", "server.py", "hung-server"))) as found:
        result = await call(found, "stay", seconds=300)
        assert "did not answer within 0.5 s" in result.text
        (server,) = pids_of("hung-server")
    await gone(server)


async def test_a_server_that_ignores_its_end_is_killed(sandbox: Sandbox) -> None:
    stubborn = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(300)"
    words = ("python3", "-c", stubborn, "stubborn-program")
    with anyio.fail_after(60):
        async with sandbox.program(Workspace("c", sandbox.root), words, {}):
            pid = await started("stubborn-program")
    await gone(pid)


async def test_a_cancelled_owner_leaves_no_program(sandbox: Sandbox) -> None:
    async def owner() -> None:
        async with sandbox.program(Workspace("c", sandbox.root), ("sleep", "301.5"), {}):
            await anyio.sleep_forever()

    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            group.start_soon(owner)
            pid = await started("301.5")
            group.cancel_scope.cancel()
        await gone(pid)


async def test_a_program_that_is_not_there_is_an_end_of_the_stream(
    sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    async with sandbox.program(Workspace("c", sandbox.root), ("no-such-program",), {}) as stream:
        with pytest.raises(anyio.EndOfStream):
            await stream.receive()
    assert "FileNotFoundError" in caplog.text
    async with opened(sandbox, inside(command="no-such-program")) as found:
        assert len(found.problems) == 1


async def test_much_goes_through_in_both_directions(sandbox: Sandbox) -> None:
    data, echoed = os.urandom(3 << 20), bytearray()
    with anyio.fail_after(60):
        async with (
            sandbox.program(Workspace("c", sandbox.root), ("cat",), {}) as stream,
            anyio.create_task_group() as group,
        ):
            group.start_soon(stream.send, data)
            while len(echoed) < len(data):
                echoed += await stream.receive()
    assert bytes(echoed) == data


async def test_a_program_is_held_to_the_memory_of_a_command(ws: Path) -> None:
    hungry = "import time; x = bytearray(200 << 20); time.sleep(300)"
    async with Sandbox(SandboxPolicy(workspace=ws, limits=Limits(memory=60 << 20))) as sandbox:
        async with sandbox.program(Workspace("c", sandbox.root), ("python3", "-c", hungry), {}) as stream:
            with anyio.fail_after(60), pytest.raises(anyio.EndOfStream):
                await stream.receive()


async def test_forgetting_a_conversation_ends_its_programs(sandbox: Sandbox) -> None:
    async with sandbox.program(Workspace("c", sandbox.root), ("cat",), {}) as stream:
        await stream.send(b"alive")
        assert await stream.receive() == b"alive"
        await sandbox.forget("c")
        with anyio.fail_after(60), pytest.raises(anyio.EndOfStream):
            await stream.receive()


async def test_programs_of_one_conversation_cannot_read_each_others_environment(sandbox: Sandbox) -> None:
    async with opened(sandbox, inside(env={"TOKEN": "CANARY-of-a-server"})) as found:
        assert found.problems == []
        seek = "cat /proc/[0-9]*/environ | tr '\\0' '\\n'; cat /proc/[0-9]*/mem"
        seen = await toolset(sandbox, "c").call("exec", {"command": seek})
    assert "CANARY" not in seen.text


async def test_below_the_required_level_no_program_runs(ws: Path) -> None:
    async with Sandbox(SandboxPolicy(workspace=ws, min_level=9)) as sandbox:
        with pytest.raises(SandboxFault, match="is required"):
            async with sandbox.program(Workspace("c", sandbox.root), ("touch", "made"), {}):
                pass
        async with opened(sandbox, inside()) as found:
            assert "does not hold enough" in found.problems[0]
    assert not (ws / "made").exists()


@only_root
async def test_no_descriptor_stays_open_behind_programs(sandbox: Sandbox) -> None:
    async def once() -> None:
        async with sandbox.program(Workspace("c", sandbox.root), ("true",), {}):
            pass

    assert sandbox.supervisor is not None
    ours, theirs = psutil.Process(), psutil.Process(sandbox.supervisor.process.pid)
    await once()
    before = ours.num_fds()
    supervisors = theirs.num_fds()
    for _ in range(30):
        await once()
    assert ours.num_fds() == before
    with anyio.fail_after(60):
        while theirs.num_fds() > supervisors:
            await anyio.sleep(0.01)

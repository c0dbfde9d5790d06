"""An outside agent beside a running host: the host's zygote serves it as whom its environment names."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import psutil
import pytest

from host.mcp_clients.tool_servers import ToolServers
from shared import jsons
from shared.store import open_store
from shared.store.store import Store
from tests.mcp.running import HELLO, RawServer, environment
from tests.mcp.test_tool_servers import eventually, zygote_of
from tests.warm_host import warm

Shim = functools.partial(RawServer, cold=True)


@pytest.fixture
async def servers(database: Path, store: Store) -> AsyncIterator[ToolServers]:
    async with ToolServers(db_path=database, store_dir=None, timezone="UTC") as servers:
        with anyio.fail_after(60), warm():
            await servers.zygote.ready()
        yield servers


def imports_the_sdk(server: RawServer) -> bool:
    return "pydantic_core" in Path(f"/proc/{server.process.pid}/maps").read_text()


async def test_beside_a_host_the_zygote_serves_and_the_process_stays_small(
    servers: ToolServers, database: Path
) -> None:
    async with Shim(environment(database, "laptop")) as server:
        await server.hello()
        (child,) = zygote_of(servers).children()
        assert child.pid != server.process.pid
        assert not imports_the_sdk(server)
        answer = await server.ask(1, "resources/read", {"uri": "picoclaw://conversation"})
        seen = jsons.loads(answer["result"]["contents"][0]["text"])
        assert (seen["conversation_id"], seen["is_main"]) == ("laptop", False)
        task = {"prompt": "x", "schedule_type": "once", "schedule_value": "2030-07-01T09:00:00"}
        scheduled = (await server.tool("schedule_task", **task))["structuredContent"]
        assert scheduled["timezone"] == "Europe/Berlin"
        assert await server.end() == 0
    await eventually(lambda: zygote_of(servers).children() == [])


async def test_without_a_host_it_serves_alone(database: Path) -> None:
    async with Shim(environment(database, "laptop")) as server:
        await server.hello()
        assert imports_the_sdk(server)
        assert await server.end() == 0


@pytest.mark.parametrize("closed", ["<&-", "</dev/null >&-", "</dev/null 2>&-", "<&- >&- 2>&-"])
def test_no_file_of_the_store_gets_the_number_of_a_stream_that_is_closed(database: Path, closed: str) -> None:
    words = f"exec {sys.executable} -m host.cli mcp {closed}"
    for _ in range(2):
        ended = subprocess.run(
            ["/bin/sh", "-c", words], env=environment(database, "laptop"), capture_output=True, check=False
        )
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"", b"")


async def test_a_door_that_nobody_stands_behind_is_passed_by(database: Path, store: Store) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as door:
        door.bind(str(database) + ".mcp")
    async with Shim(environment(database, "laptop")) as server:
        await server.hello()
        assert imports_the_sdk(server)


async def test_another_hosts_door_does_not_serve_this_database(servers: ToolServers, database: Path) -> None:
    other = database.parent / "elsewhere"
    other.mkdir()
    async with Shim(environment(other / "picoclaw.db", "laptop")) as server:
        await server.hello()
        assert zygote_of(servers).children() == []


@pytest.mark.parametrize("how", ["terminate", "kill"])
async def test_a_shim_that_is_killed_takes_its_session_along(
    servers: ToolServers, database: Path, how: str
) -> None:
    async with Shim(environment(database, "laptop")) as server:
        await server.hello()
        assert len(zygote_of(servers).children()) == 1
        getattr(server.process, how)()
        await eventually(lambda: zygote_of(servers).children() == [])


async def test_a_shim_that_was_told_to_end_says_so_by_its_status(
    servers: ToolServers, database: Path
) -> None:
    async with Shim(environment(database, "laptop")) as server:
        await server.hello()
        # It gives its descriptors away once it has a handler.
        await eventually(lambda: os.readlink(f"/proc/{server.process.pid}/fd/0") == os.devnull)
        server.process.terminate()
        with anyio.fail_after(60):
            assert await server.process.wait() == 128 + signal.SIGTERM


async def test_a_host_that_ends_ends_its_outside_sessions(database: Path, store: Store) -> None:
    async with ToolServers(db_path=database, store_dir=None, timezone="UTC") as servers:
        with warm():
            await servers.zygote.ready()
        server = Shim(environment(database, "laptop"))
        await server.__aenter__()
        await server.hello()
    try:
        with anyio.fail_after(60):
            await server.process.wait()
        assert not Path(str(database) + ".mcp").exists()
    finally:
        await server.__aexit__(None, None, None)


async def test_a_session_writes_its_complaints_where_the_shim_would(
    servers: ToolServers, database: Path
) -> None:
    async with Shim(environment(database, "laptop")) as server:
        await server.hello()
        (session,) = zygote_of(servers).children()
        at = [os.readlink(f"/proc/{pid}/fd/2") for pid in (session.pid, server.process.pid)]
        assert at[0] == at[1]


async def test_a_session_that_is_cut_off_with_its_zygote_is_no_success(
    servers: ToolServers, database: Path
) -> None:
    async with Shim(environment(database, "laptop")) as server:
        await server.hello()
        zygote = zygote_of(servers)
        (session,) = zygote.children()
        zygote.kill()
        with contextlib.suppress(psutil.NoSuchProcess):
            session.kill()
        with anyio.fail_after(60):
            assert await server.process.wait() == 1


def birth(fields: object) -> bytes:
    return jsons.dump_bytes(fields)


SOUND = {"conversation_id": "conv-a", "is_main": True, "timezone": "UTC"}


async def knock(database: Path, packet: bytes, fds: list[int]) -> bytes:
    """Ask at the door by hand; return its answer, empty when it was closed."""

    def ask() -> bytes:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as door:
            door.settimeout(60)
            door.connect(str(database) + ".mcp")
            socket.send_fds(door, [packet], fds)
            try:
                return door.recv(64)
            except ConnectionResetError:
                return b""

    return await anyio.to_thread.run_sync(ask)


async def test_only_who_may_write_the_database_is_served(servers: ToolServers, database: Path) -> None:
    other = database.parent / "other"
    other.touch()
    proofs: dict[str, tuple[Path, int] | None] = {
        "none": None,
        "other file": (other, os.O_RDWR),
        "read-only": (database, os.O_RDONLY),
        "path only": (database, os.O_PATH | os.O_RDWR),
        "database": (database, os.O_RDWR),
    }
    nothing = os.open(os.devnull, os.O_RDWR)
    for proof, opened in proofs.items():
        descriptors = [] if opened is None else [os.open(*opened)]
        answer = await knock(database, birth(SOUND), [nothing] * 3 + descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        assert answer == (b"served" if proof == "database" else b""), proof
    os.close(nothing)


NO_BIRTHS = [
    b"\0",
    b"junk",
    b"[]",
    birth({}),
    birth({**SOUND, "conversation_id": 7}),
    birth({**SOUND, "conversation_id": "../x"}),
    birth({**SOUND, "is_main": "yes"}),
    birth({**SOUND, "timezone": None}),
    birth({**SOUND, "conversation_id": "x" * 5000}),
]


async def test_a_packet_that_is_no_birth_is_refused_and_the_next_one_served(
    servers: ToolServers, database: Path
) -> None:
    descriptor = os.open(database, os.O_RDWR)
    nothing = os.open(os.devnull, os.O_RDWR)
    zygote = zygote_of(servers)
    before = zygote.num_fds()
    for packet in NO_BIRTHS:
        assert await knock(database, packet, [nothing] * 3 + [descriptor]) == b"", packet[:60]
        assert await knock(database, birth(SOUND), [nothing] * 3 + [descriptor]) == b"served"
    await eventually(lambda: zygote.num_fds() == before)
    for fd in (descriptor, nothing):
        os.close(fd)


async def test_strangers_who_say_nothing_keep_nobody_waiting(servers: ToolServers, database: Path) -> None:
    strangers = []
    try:
        for _ in range(200):
            stranger = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            strangers.append(stranger)
            await anyio.to_thread.run_sync(stranger.connect, str(database) + ".mcp")
        assert not (
            await servers.toolset("conv-a", is_main=False).call("mcp__picoclaw__list_tasks", {})
        ).is_error
        assert zygote_of(servers).num_fds() < 100
    finally:
        for stranger in strangers:
            stranger.close()


async def test_the_door_is_its_owners_only(servers: ToolServers, database: Path) -> None:
    assert Path(str(database) + ".mcp").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("newer", [False, True])
async def test_the_door_goes_with_its_host_but_never_a_newer_one(
    database: Path, store: Store, newer: bool
) -> None:
    door = Path(f"{database}.mcp")
    async with ToolServers(db_path=database, store_dir=None, timezone="UTC") as servers:
        with warm():
            await servers.zygote.ready()
        assert door.is_socket()
        if newer:
            door.rename(f"{door}.old")
            door.touch()
    assert door.exists() == newer


def test_a_rehearsal_leaves_nothing_open_that_every_session_would_inherit() -> None:
    program = (
        "import os; from mcp_server.session import rehearse; rehearse('UTC'); "
        "before = os.listdir('/proc/self/fd'); rehearse('UTC'); "
        "assert os.listdir('/proc/self/fd') == before"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


async def test_a_database_deep_down_has_a_door_too(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["directory-with-a-long-name"] * 6)
    deep.mkdir(parents=True)
    await open_store(deep / "picoclaw.db").close()
    async with ToolServers(db_path=deep / "picoclaw.db", store_dir=None, timezone="UTC") as servers:
        with warm():
            await servers.zygote.ready()
        async with Shim(environment(deep / "picoclaw.db", "laptop")) as server:
            await server.hello()
            assert not imports_the_sdk(server)


async def test_the_shim_needs_the_standard_library_only() -> None:
    program = (
        "import sys, mcp_server.__main__\n"
        "print([name for name in ('mcp', 'anyio', 'pydantic', 'orjson', 'asyncio') if name in sys.modules])"
    )
    finished = await anyio.run_process([sys.executable, "-c", program], stderr=subprocess.STDOUT)
    assert finished.stdout == b"[]\n"


async def test_sessions_of_outside_agents_are_bounded(servers: ToolServers, database: Path) -> None:
    descriptor = os.open(database, os.O_RDWR)
    read, write = os.pipe()
    waiting: list[socket.socket] = []
    try:
        for number in range(66):
            door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            door.settimeout(60)
            waiting.append(door)
            await anyio.to_thread.run_sync(door.connect, str(database) + ".mcp")
            try:
                socket.send_fds(door, [birth(SOUND)], [read, write, write, descriptor])
                answer = await anyio.to_thread.run_sync(door.recv, 64)
            except (ConnectionResetError, BrokenPipeError):
                answer = b""
            assert (answer == b"served") == (number < 64), number
    finally:
        for door in waiting:
            door.close()
        for fd in (descriptor, read, write):
            os.close(fd)
    await eventually(lambda: not psutil.Process(servers.zygote.pid).children())


async def test_the_command_imports_nothing_from_the_directory_it_is_started_in(
    database: Path, tmp_path: Path
) -> None:
    project = tmp_path / "project"
    for package in ("shared", "mcp_server", "host"):
        (project / package).mkdir(parents=True)
        (project / package / "__init__.py").write_text("raise SystemExit('the wrong package')")
    command = [str(Path(sys.executable).parent / "picoclaw"), "mcp"]
    hello = jsons.dump_bytes({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": HELLO}) + b"\n"
    with anyio.fail_after(60):
        finished = await anyio.run_process(
            command, input=hello, cwd=project, env=environment(database, "laptop"), check=False
        )
    assert finished.returncode == 0, finished.stderr
    assert jsons.loads(finished.stdout)["result"]["serverInfo"]["name"] == "picoclaw"

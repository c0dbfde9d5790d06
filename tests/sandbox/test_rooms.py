"""A conversation's commands follow each other in one room, and find nothing of each other there but files."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

import anyio
import psutil
import pytest

from host.sandbox.client import Sandbox
from host.sandbox.policy import Limits, SandboxPolicy
from host.sandbox.worker.exec.reapers import MAX_RESTING, WARM
from host.tools.files_and_commands import SandboxToolset
from tests.sandbox.opened import toolset
from tests.sandbox.processes import gone, pids_of, started


async def run(tools: SandboxToolset, command: str) -> str:
    result = await tools.call("exec", {"command": command})
    return result.text


def reapers(sandbox: Sandbox) -> dict[int, int]:
    """Return the reapers that have a launcher, by the launcher's pid."""
    assert sandbox.supervisor is not None
    found: dict[int, int] = {}
    for child in psutil.Process(sandbox.supervisor.process.pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):
            found |= {below.pid: child.pid for below in child.children()}
    return found


async def rested(sandbox: Sandbox, conversations: int) -> dict[int, int]:
    """Wait until there are as many as wait for anybody, and one for each conversation."""
    with anyio.fail_after(60):
        while len(found := reapers(sandbox)) != WARM + conversations:
            await anyio.sleep(0.01)
    return found


async def test_the_next_command_of_a_conversation_finds_its_room(
    sandbox: Sandbox, tools: SandboxToolset
) -> None:
    if (await sandbox.ready()).level < 3:
        pytest.skip("at this level the room waits for another launcher, and nobody sees when it has it")

    async def rooms_after(command: str) -> set[int]:
        await run(tools, command)
        return set((await rested(sandbox, 1)).values())

    rooms: set[int] = set()
    for command in ("true", "sleep 406.5 & setsid sleep 406.5 & true", "exit 3"):
        with anyio.fail_after(60):  # one that is not yet at rest is not found, which nobody sees
            while (found := await rooms_after(command)) != rooms:
                rooms = found


async def test_what_a_command_left_running_is_gone_before_its_answer(tools: SandboxToolset) -> None:
    for number in range(3):
        word = f"405.{number}"
        await run(tools, f"setsid sleep {word} & (sleep {word} &) ; nohup sleep {word} >/dev/null & true")
        assert not pids_of(word)


async def test_a_command_cannot_signal_what_started_it(sandbox: Sandbox, tools: SandboxToolset) -> None:
    command = "for s in 9 STOP TERM 0; do kill -$s $PPID && echo sent; done; kill -9 -1; echo end"
    text = await run(tools, command)
    assert "sent" not in text
    assert "end\n[exit code 0" in text
    assert "[exit code 0" in await run(tools, "true")


async def test_a_room_ends_with_a_command_that_reached_a_limit(
    sandbox: Sandbox, tools: SandboxToolset
) -> None:
    result = await tools.call("exec", {"command": "setsid sleep 408.5 & sleep 408.5", "timeout_ms": 200})
    assert "time limit" in result.text
    assert not pids_of("408.5")
    await rested(sandbox, 0)


async def test_orphans_are_reaped_while_a_command_runs(tools: SandboxToolset) -> None:
    # Level 2 sees other people's dead as well: these have a name of their own.
    command = "cp /bin/true orphan-$$; for i in $(seq 100); do (setsid ./orphan-$$ &); done; sleep 0.2; "
    command += "ps -eo stat,comm | grep -c '^Z.*orphan-'$$"
    assert int((await run(tools, command)).split()[0]) < 50


async def test_commands_are_the_first_that_the_kernel_kills(tools: SandboxToolset) -> None:
    for _ in range(2):
        assert "600" in await run(tools, "cat /proc/self/oom_score_adj; nice")


async def test_shared_memory_is_not_handed_on(sandbox: Sandbox, tools: SandboxToolset) -> None:
    if (await sandbox.ready()).level < 3:
        pytest.skip("there is none at this level")
    await run(tools, "echo from before > /dev/shm/note")
    assert "from before" not in await run(tools, "cat /dev/shm/note")


async def test_a_port_in_time_wait_is_not_handed_on(sandbox: Sandbox, tools: SandboxToolset) -> None:
    if (await sandbox.ready()).level < 3:
        pytest.skip("there are no ports at this level")
    serve = (
        "python3 - <<'EOF'\n"
        "import socket\n"
        "listening = socket.socket(); listening.bind(('127.0.0.1', 8081)); listening.listen()\n"
        "other = socket.create_connection(('127.0.0.1', 8081)); ours, _ = listening.accept()\n"
        "ours.close(); other.recv(1); other.close()\n"
        "print('served')\n"
        "EOF"
    )
    for _ in range(2):
        assert "served" in await run(tools, serve)


async def test_a_conversation_never_gets_the_room_of_another(sandbox: Sandbox, tools: SandboxToolset) -> None:
    await run(tools, "echo mine > $TMPDIR/mine")
    await rested(sandbox, 1)
    mine = (await run(tools, "echo $TMPDIR")).splitlines()[0]
    other = toolset(sandbox, "conv-other")
    for command in (f"cat {mine}/mine", f"ls -A {mine}", f"echo x > {mine}/x"):
        assert "[exit code 0" not in await run(other, command)
    if sandbox.report.level == 3:
        assert "[exit code 0" not in await run(other, f"chmod 777 {mine} || stat {mine}/mine")
    assert "mine" in await run(tools, "cat $TMPDIR/mine")


async def test_the_place_of_all_private_directories_is_covered(
    sandbox: Sandbox, tools: SandboxToolset
) -> None:
    if (await sandbox.ready()).level < 3:
        pytest.skip("there is no private root at this level")
    await run(toolset(sandbox, "conv-other"), "echo secret > $TMPDIR/secret")
    for command in (
        "ls -A /.places; ls -A /.places/..",
        "stat /.places/1",
        "cd /.places && ls -A . ..",
        "touch /.places",
    ):
        text = await run(tools, command)
        assert "secret" not in text
        assert "home" not in text
    assert "[exit code 0" not in await run(tools, "stat /.places/1")


async def test_a_forgotten_conversation_keeps_no_room(sandbox: Sandbox, tools: SandboxToolset) -> None:
    await run(tools, "true")
    await rested(sandbox, 1)
    await sandbox.forget("conv-test")
    await rested(sandbox, 0)
    assert "[exit code 0" in await run(tools, "echo x > $TMPDIR/x")


async def test_a_room_follows_a_workspace_that_was_replaced(
    sandbox: Sandbox, tools: SandboxToolset, ws: Path
) -> None:
    await run(tools, "true")
    await rested(sandbox, 1)
    owner = ws.stat()
    ws.rename(ws.with_name("away"))
    try:
        ws.mkdir()
        os.chown(ws, owner.st_uid, owner.st_gid)
        (ws / "new.txt").write_text("new one")
        assert "new one" in await run(tools, "cat new.txt")
        assert "new one" in await run(toolset(sandbox, "conv-new"), "cat new.txt")
    finally:
        shutil.rmtree(ws)
        ws.with_name("away").rename(ws)


async def test_few_rooms_wait(ws: Path) -> None:
    async with Sandbox(SandboxPolicy(workspace=ws, limits=Limits(reaper_idle_s=600))) as sandbox:
        for number in range(MAX_RESTING + 4):
            await run(toolset(sandbox, f"conv-{number}"), "true")
        await rested(sandbox, MAX_RESTING)


async def test_no_room_waits_for_long(ws: Path) -> None:
    async with Sandbox(SandboxPolicy(workspace=ws, limits=Limits(reaper_idle_s=5.0))) as sandbox:
        await run(toolset(sandbox, "c"), "true")
        await rested(sandbox, 1)
        await rested(sandbox, 0)


async def test_many_commands_of_one_conversation_at_once_leave_one_room(
    sandbox: Sandbox, tools: SandboxToolset
) -> None:
    async with anyio.create_task_group() as group:
        for _ in range(12):
            group.start_soon(run, tools, "sleep 0.05")
    await rested(sandbox, 1)


async def test_a_room_ends_with_the_supervisor(sandbox: Sandbox, tools: SandboxToolset) -> None:
    await run(tools, "true")
    launchers = await rested(sandbox, 1)
    assert sandbox.supervisor is not None
    psutil.Process(sandbox.supervisor.process.pid).kill()
    for launcher, reaper in launchers.items():
        await gone(launcher)
        await gone(reaper)


async def test_interrupts_reach_commands(tools: SandboxToolset) -> None:
    command = "python3 -c 'import os, signal; os.kill(os.getpid(), signal.SIGINT)'"
    assert "KeyboardInterrupt" in await run(tools, command)


async def test_a_command_has_three_streams_and_no_more(tools: SandboxToolset) -> None:
    for _ in range(2):
        assert (await run(tools, "ls /proc/self/fd | tr '\\n' ' '")).startswith("0 1 2 3 \n")


async def test_a_killed_reaper_takes_its_command_along(sandbox: Sandbox, tools: SandboxToolset) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(run, tools, "sleep 407.5 & sleep 407.25")
        pid = await started("407.25")
        for reaper in set(reapers(sandbox).values()):
            psutil.Process(reaper).kill()
        await gone(pid)

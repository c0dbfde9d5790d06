"""The door as the rest of the host uses it."""

from __future__ import annotations

import os
from pathlib import Path

import anyio
import pytest

from host.ports import ToolResult
from host.sandbox.client import READY_TIMEOUT_S, Sandbox
from host.sandbox.policy import SandboxPolicy
from host.tools.files_and_commands import SandboxToolset
from shared.errors import Misconfigured
from tests.only_root import only_root
from tests.sandbox.opened import private_directory, read_text, toolset
from tests.sandbox.processes import gone, pids_of, started

SIX = ["read_file", "write_file", "edit_file", "append_file", "list_dir", "exec"]


async def run(tools: SandboxToolset, command: str, **more: object) -> ToolResult:
    with anyio.fail_after(60):
        return await tools.call("exec", {"command": command, **more})


async def test_the_self_test_reaches_level_two_here(sandbox: Sandbox) -> None:
    with anyio.fail_after(60):
        report = await sandbox.ready()
    assert report.level >= 2, report
    assert report.layers["files"]
    assert report.layers["signal_scope"]


async def test_the_six_tools_are_offered_in_a_stable_order(tools: SandboxToolset) -> None:
    assert [spec.name for spec in tools.specs] == SIX


async def test_exec_is_left_out_when_it_is_switched_off(ws: Path) -> None:
    async with Sandbox(SandboxPolicy(workspace=ws, exec_enabled=False)) as sandbox:
        tools = toolset(sandbox, "conv")
        assert [spec.name for spec in tools.specs] == SIX[:-1]
        assert (await tools.call("exec", {"command": "true"})).is_error


async def test_a_command_runs_in_the_workspace(tools: SandboxToolset, ws: Path) -> None:
    result = await run(tools, "pwd; cat ok.txt")
    assert not result.is_error
    assert result.text.startswith(f"{ws}\nfine\n[exit code 0")


async def test_a_command_has_terminals_of_its_own(sandbox: Sandbox, tools: SandboxToolset) -> None:
    layers = (await sandbox.ready()).layers
    if not (layers.get("own_terminals") or layers.get("own_uid")):
        pytest.skip("there are none of its own at this level")
    code = "import os; ours, theirs = os.openpty(); os.write(theirs, b'seen'); print(os.read(ours, 9))"
    assert (await run(tools, f'python3 -c "{code}"')).text.startswith("b'seen'\n")


async def test_the_exit_code_is_told_and_makes_it_an_error(tools: SandboxToolset) -> None:
    result = await run(tools, "exit 3")
    assert result.is_error
    assert "exit code 3" in result.text


async def test_stdout_and_stderr_come_in_the_order_they_were_written(tools: SandboxToolset) -> None:
    result = await run(tools, "for i in 1 2 3; do echo out$i; echo err$i >&2; done")
    assert result.text.startswith("out1\nerr1\nout2\nerr2\nout3\nerr3\n")


async def test_stdin_is_passed_and_otherwise_empty(tools: SandboxToolset) -> None:
    assert (await run(tools, "cat", stdin="given")).text.startswith("given")
    assert (await run(tools, "cat; echo end")).text.startswith("end")


async def test_the_environment_is_the_sandboxs_own(
    tools: SandboxToolset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CANARY_IN_HOST", "canary-7f3a")
    result = await run(tools, "env")
    assert "canary-7f3a" not in result.text
    assert "HOME=" in result.text


async def test_a_file_outside_cannot_be_read_by_a_command(tools: SandboxToolset, place: Path) -> None:
    result = await run(tools, f"f={place}; cat $f/outside/secret.txt")
    assert "outside-secret" not in result.text
    assert result.is_error


async def test_a_command_that_outlives_its_time_is_stopped(tools: SandboxToolset) -> None:
    result = await run(tools, "sleep 60", timeout_ms=200)
    assert "time limit" in result.text


async def test_what_a_command_leaves_running_is_gone(tools: SandboxToolset, ws: Path) -> None:
    left = "(setsid sh -c 'echo $$ > pid; sleep 302.25' &) ; while ! test -s pid; do sleep 0.01; done"
    async with anyio.create_task_group() as group:
        group.start_soon(run, tools, f"{left}; touch seen; while test -e pid; do sleep 0.01; done")
        with anyio.fail_after(60):
            # Only then is the first loop over, which the end of the second would hold up for ever.
            while not (ws / "seen").exists():
                await anyio.sleep(0.01)
        (ws / "pid").unlink()
    assert pids_of("302.25") == []


async def test_a_cancelled_call_ends_its_command_before_it_raises(tools: SandboxToolset) -> None:
    with anyio.move_on_after(10) as scope:

        async def until_started() -> None:
            await started("303.25")
            scope.cancel()

        async with anyio.create_task_group() as group:
            group.start_soon(until_started)
            await run(tools, "exec sleep 303.25")
    assert scope.cancelled_caught
    assert pids_of("303.25") == []


async def test_background_commands_are_listed_read_and_killed(tools: SandboxToolset) -> None:
    started = await run(tools, "echo hello; sleep 300", background=True)
    assert "job 1" in started.text
    with anyio.fail_after(60):
        while "hello" not in (await tools.call("exec", {"action": "read", "job": 1})).text:
            await anyio.sleep(0.01)
    assert "running" in (await tools.call("exec", {"action": "list"})).text
    assert "cancelled" in (await tools.call("exec", {"action": "kill", "job": 1})).text
    assert "cancelled" in (await tools.call("exec", {"action": "list"})).text


async def test_background_commands_are_their_conversations_own(
    sandbox: Sandbox, tools: SandboxToolset
) -> None:
    await run(tools, "sleep 300", background=True)
    other = toolset(sandbox, "conv-other")
    assert "no background commands" in (await other.call("exec", {"action": "list"})).text
    assert (await other.call("exec", {"action": "kill", "job": 1})).is_error


async def test_forgetting_a_conversation_ends_its_commands_and_removes_its_private_directory(
    sandbox: Sandbox, tools: SandboxToolset
) -> None:
    private = await private_directory(sandbox, "conv-test")
    await run(tools, "exec sleep 307.25", background=True)
    pid = await started("307.25")
    await sandbox.forget("conv-test")
    await gone(pid)
    with anyio.fail_after(60):
        while Path(private).exists():
            await anyio.sleep(0.005)


async def test_the_supervisor_is_restarted_when_it_dies(sandbox: Sandbox, tools: SandboxToolset) -> None:
    await run(tools, "true")
    assert sandbox.supervisor is not None
    process = sandbox.supervisor.process
    process.kill()
    with anyio.fail_after(60):
        while (await run(tools, "echo again")).is_error:
            await anyio.sleep(0.05)


async def test_the_hosts_own_reads_go_through_the_same_door(sandbox: Sandbox, ws: Path) -> None:
    (ws / "AGENT.md").write_text("persona")
    (ws / "link.md").symlink_to("/etc/passwd")
    assert await read_text(sandbox, "AGENT.md", 100) == "persona"
    assert await read_text(sandbox, "AGENT.md", 3) == "per"
    assert await read_text(sandbox, "link.md", 100) is None
    assert await read_text(sandbox, "../outside/secret.txt", 100) is None
    assert await read_text(sandbox, "absent.md", 100) is None


async def test_below_the_required_level_every_tool_is_refused_with_the_reason(ws: Path) -> None:
    async with Sandbox(SandboxPolicy(workspace=ws, min_level=9)) as sandbox:
        for name, arguments in (("read_file", {"path": "ok.txt"}), ("exec", {"command": "true"})):
            result = await toolset(sandbox, "c").call(name, arguments)
            assert result.is_error
            assert "9 is required" in result.text


def test_a_secret_inside_the_workspace_stops_the_start(ws: Path) -> None:
    with pytest.raises(Misconfigured):
        SandboxPolicy(workspace=ws, secret_paths=(ws / "store",))


async def test_bad_arguments_are_answered_with_a_sentence(tools: SandboxToolset) -> None:
    assert "no argument named nope" in (await tools.call("exec", {"nope": 1})).text
    assert "path is missing" in (await tools.call("read_file", {})).text
    assert "must be of type string" in (await tools.call("read_file", {"path": 3})).text
    assert "no tool named rm" in (await tools.call("rm", {})).text


async def test_arguments_of_plain_meaning_are_taken(tools: SandboxToolset) -> None:
    read = await tools.call("read_file", {"path": "ok.txt", "offset": 1.0, "limit": None})
    assert (read.is_error, read.text.splitlines()[1]) == (False, "fine")
    done = await run(tools, "true", timeout_ms=5000.0, cwd=None, stdin=None, background=None)
    assert "exit code 0" in done.text
    assert (
        "offset must be of type integer" in (await tools.call("read_file", {"path": "x", "offset": 1.5})).text
    )


async def test_a_refusal_is_logged_with_tool_and_error(
    tools: SandboxToolset, caplog: pytest.LogCaptureFixture
) -> None:
    await tools.call("read_file", {"path": "../outside/secret.txt"})
    [record] = [r for r in caplog.records if r.message == "Tool execution failed"]
    assert record.name == "picoclaw.tools"
    assert record.tool == "read_file"  # type: ignore[attr-defined] # logging's extra fields
    assert "outside" in record.error  # type: ignore[attr-defined] # logging's extra fields


async def test_it_works_without_a_uid_of_its_own(ws: Path, place: Path) -> None:
    outside = place / "outside" / "secret.txt"
    mode = outside.stat().st_mode
    async with Sandbox(SandboxPolicy(workspace=ws, uid=os.geteuid())) as sandbox:
        with anyio.fail_after(60):
            assert (await sandbox.ready()).level >= 2
        tools = toolset(sandbox, "conv")
        inside = await run(
            tools, "chmod 600 ok.txt && stat -c %a ok.txt && touch -d 2001-01-01 ok.txt && date -r ok.txt +%Y"
        )
        assert inside.text.startswith("600\n2001\n")
        assert (await run(tools, f"chmod 777 {outside}")).is_error
        assert (
            await run(tools, f"exec 3<ok.txt; rm ok.txt; ln -s {outside} ok.txt; chmod 777 ok.txt")
        ).is_error
    assert outside.stat().st_mode == mode


@only_root
async def test_a_supervisor_that_cannot_start_is_reported_and_not_tried_without_end(tmp_path: Path) -> None:
    with anyio.fail_after(60):
        async with Sandbox(SandboxPolicy(workspace=tmp_path / "absent")) as sandbox:
            report = await sandbox.ready()
            assert report.level == 0
            assert report.missing
            result = await toolset(sandbox, "conv-1").call("read_file", {"path": "a"})
            assert result.is_error


async def test_calls_wait_for_the_next_supervisor_when_the_first_dies_before_it_is_ready(ws: Path) -> None:
    async with Sandbox(SandboxPolicy(workspace=ws)) as sandbox:
        assert sandbox.supervisor is not None
        sandbox.supervisor.process.kill()
        with anyio.fail_after(READY_TIMEOUT_S / 2):
            result = await toolset(sandbox, "c").call("read_file", {"path": "ok.txt"})
            assert (await sandbox.ready()).level >= 2
        assert result.text.endswith("fine\n"), result.text


async def test_supervisors_that_all_die_before_they_are_ready_are_the_reason_of_a_refusal(ws: Path) -> None:
    async with Sandbox(SandboxPolicy(workspace=ws)) as sandbox, anyio.create_task_group() as tasks:

        async def kill_each() -> None:
            while True:
                if sandbox.supervisor is not None:
                    sandbox.supervisor.process.kill()
                await anyio.sleep(0)

        tasks.start_soon(kill_each)
        with anyio.fail_after(READY_TIMEOUT_S / 2):
            result = await toolset(sandbox, "c").call("read_file", {"path": "ok.txt"})
        assert "the sandbox supervisor died before it was ready" in result.text
        tasks.cancel_scope.cancel()


async def test_without_a_place_for_temporary_files_tools_are_refused_with_the_reason(
    ws: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(ws / "absent"))
    async with Sandbox(SandboxPolicy(workspace=ws)) as sandbox:
        result = await toolset(sandbox, "c").call("exec", {"command": "true"})
        assert "could not be started: No such file or directory" in result.text

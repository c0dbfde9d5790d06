"""What must hold under load, on older kernels, and when parts die."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import anyio
import psutil
import pytest

from host.sandbox.client import Sandbox
from host.sandbox.policy import Limits, SandboxPolicy, commands_own
from host.sandbox.worker.confine.grants import Access, Grant, owns_something_readable
from host.tools.files_and_commands import SandboxToolset
from shared.store.sqlite.content import temporary_directory
from tests.only_root import only_root
from tests.sandbox.opened import private_directory, toolset
from tests.sandbox.processes import gone, pids_of, started


def below(sandbox: Sandbox) -> list[psutil.Process]:
    assert sandbox.supervisor is not None
    return psutil.Process(sandbox.supervisor.process.pid).children(recursive=True)


def _is_zombie(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):  # it ends meanwhile
        return process.status() == psutil.STATUS_ZOMBIE
    return False


async def test_many_runs_leave_no_process_behind(sandbox: Sandbox) -> None:
    tools = [toolset(sandbox, f"conv-{number}") for number in range(4)]

    async def caller(mine: SandboxToolset) -> None:
        for _ in range(8):
            assert not (await mine.call("exec", {"command": "true & true"})).is_error

    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            for each in tools:
                group.start_soon(caller, each)
        # A reaper for each conversation and some that wait ahead, with a launcher each: half as many as ran
        while len(below(sandbox)) > 16 or any(_is_zombie(each) for each in below(sandbox)):
            await anyio.sleep(0.02)


async def test_many_conversations_have_a_worker_each(sandbox: Sandbox, ws: Path) -> None:
    with anyio.fail_after(60):
        for number in range(200):
            result = await toolset(sandbox, f"conv-{number}").call("read_file", {"path": "ok.txt"})
            assert not result.is_error


async def test_the_output_is_bounded_while_it_is_read(tools: SandboxToolset) -> None:
    result = await tools.call("exec", {"command": "seq 1 2000000"})
    assert len(result.text) < 70_000
    assert result.text.startswith("1\n2\n")
    assert "bytes left out" in result.text
    assert "2000000\n[exit code 0" in result.text


async def test_memory_of_all_processes_together_is_bounded(ws: Path) -> None:
    limits = Limits(memory=100 << 20)
    hungry = "for i in 1 2 3 4; do (x=$(head -c 60000000 /dev/zero | tr '\\0' x); sleep 5) & done; wait"
    async with Sandbox(SandboxPolicy(workspace=ws, limits=limits)) as sandbox:
        result = await toolset(sandbox, "c").call("exec", {"command": hungry})
    assert "memory limit" in result.text


async def test_a_fork_bomb_is_stopped(ws: Path) -> None:
    policy = SandboxPolicy(workspace=ws, limits=Limits(processes=64), allow_patterns=("",))
    async with Sandbox(policy) as sandbox:
        bomb = ":(){ :|:& };:; wait; sleep 20"
        with anyio.fail_after(60):
            result = await toolset(sandbox, "c").call("exec", {"command": bomb})
        assert "too many processes" in result.text
        assert not (await toolset(sandbox, "c").call("exec", {"command": "true"})).is_error


@pytest.mark.parametrize("abi", [1, 2, 3, 4, 5])
async def test_older_kernels_keep_files_closed_and_leave_nothing_running(
    ws: Path, place: Path, abi: int
) -> None:
    async with Sandbox(SandboxPolicy(workspace=ws, max_landlock_abi=abi, max_level=2)) as sandbox:
        report = await sandbox.ready()
        assert report.landlock_abi == abi
        assert report.level == 2
        assert "signal_scope" in report.missing
        tools = toolset(sandbox, "c")
        outside = f"x={place}/outside; cat $x/secret.txt; truncate -s 0 $x/secret.txt"
        assert "outside-secret" not in (await tools.call("exec", {"command": outside})).text
        await tools.call("exec", {"command": "setsid -f sleep 304.25"})
        assert pids_of("304.25") == []
    assert (place / "outside" / "secret.txt").read_text() == "outside-secret\n"


async def test_when_a_reaper_dies_its_command_is_ended_and_the_call_answered(
    sandbox: Sandbox, tools: SandboxToolset
) -> None:
    pids: list[int] = []

    async def kill_it() -> None:
        pids.append(await started("305.25"))
        assert sandbox.supervisor is not None
        [reaper] = [
            p for p in psutil.Process(pids[0]).parents() if p.ppid() == sandbox.supervisor.process.pid
        ]
        reaper.kill()

    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            group.start_soon(kill_it)
            result = await tools.call("exec", {"command": "exec sleep 305.25"})
    assert result.is_error
    await gone(pids[0])
    assert not (await tools.call("exec", {"command": "true"})).is_error


async def test_when_a_worker_dies_the_next_call_has_a_fresh_one(
    sandbox: Sandbox, tools: SandboxToolset
) -> None:
    await tools.call("read_file", {"path": "ok.txt"})
    for process in below(sandbox):
        with contextlib.suppress(psutil.NoSuchProcess):  # a reaper's launcher goes with it
            process.kill()
    with anyio.fail_after(60):
        while (await tools.call("read_file", {"path": "ok.txt"})).is_error:
            await anyio.sleep(0.01)


async def test_a_result_says_that_what_was_left_running_was_ended(tools: SandboxToolset) -> None:
    left = await tools.call("exec", {"command": "nohup sleep 307.25 >/dev/null 2>&1 & echo started"})
    assert left.text.startswith("started\n[what the command left running was ended with it. To keep it, pass")
    assert not left.is_error
    for nothing in ("sleep 0.01 & wait; echo done", "echo done", "(setsid true; true); echo done"):
        assert (await tools.call("exec", {"command": nothing})).text.startswith("done\n[exit code 0"), nothing


async def test_date_shows_the_zone_of_the_host(ws: Path) -> None:
    async with Sandbox(SandboxPolicy(workspace=ws, time_zone="Asia/Tokyo")) as sandbox:
        shown = await toolset(sandbox, "c").call("exec", {"command": "date +%z; date +%Z"})
    assert shown.text.startswith("+0900\nJST\n")


async def test_nothing_survives_when_the_supervisor_is_killed(
    sandbox: Sandbox, tools: SandboxToolset
) -> None:
    await tools.call("exec", {"command": "setsid sleep 306.25 & sleep 300", "background": True})
    pid = await started("306.25")
    assert sandbox.supervisor is not None
    sandbox.supervisor.process.kill()
    await gone(pid)


async def test_leaving_ends_everything_and_removes_private_directories(ws: Path) -> None:
    async with Sandbox(SandboxPolicy(workspace=ws)) as sandbox:
        tools = toolset(sandbox, "c")
        private = Path(await private_directory(sandbox, "c"))
        deep = (
            "import os; os.chdir(os.environ['TMPDIR']); [(os.mkdir('d'), os.chdir('d')) for _ in range(1500)]"
        )
        result = await tools.call("exec", {"command": f'python3 -c "{deep}"; mkdir -m 000 $TMPDIR/closed'})
        assert not result.is_error
        await tools.call("exec", {"command": "sleep 300", "background": True})
        processes = below(sandbox)
        assert private.exists()
    assert not private.parent.exists()
    assert not [p for p in processes if p.is_running()]


async def test_reading_outside_may_be_allowed_but_never_the_secrets(ws: Path, place: Path) -> None:
    (place / "store").mkdir(mode=0o755)
    (place / "store" / "db").write_text("store-secret")
    policy = SandboxPolicy(
        workspace=ws, allow_read_outside_workspace=True, secret_paths=(place / "store",), uid=0
    )
    async with Sandbox(policy) as sandbox:
        tools = toolset(sandbox, "c")
        secret = str(place / "outside" / "secret.txt")
        assert "outside-secret" in (await tools.call("exec", {"command": f"cat {secret}"})).text
        assert "outside-secret" in (await tools.call("read_file", {"path": secret})).text
        assert (await tools.call("exec", {"command": f"echo x > {secret}"})).is_error
        assert (await tools.call("write_file", {"path": secret, "content": "", "overwrite": True})).is_error
        assert "store-secret" not in (await tools.call("exec", {"command": f"cat {place}/store/db"})).text
        assert (await tools.call("read_file", {"path": f"{place}/store/db"})).is_error


async def test_allowed_paths_are_reachable_and_their_neighbours_are_not(ws: Path, place: Path) -> None:
    for name in ("data-a", "data-b", "out"):
        (place / name).mkdir()
        (place / name / "f").write_text(f"in {name}")
    (place / "data-link").symlink_to(place / "outside")
    (place / "out").chmod(0o777)
    policy = SandboxPolicy(workspace=ws, read_paths=(f"{place}/data-*",), write_paths=(f"{place}/out",))
    async with Sandbox(policy) as sandbox:
        tools = toolset(sandbox, "c")
        assert "in data-b" in (await tools.call("exec", {"command": f"cat {place}/data-b/f"})).text
        assert not (await tools.call("read_file", {"path": f"{place}/data-a/f"})).is_error
        assert (await tools.call("append_file", {"path": f"{place}/data-a/f", "content": "x"})).is_error
        assert not (await tools.call("write_file", {"path": f"{place}/out/new", "content": "x"})).is_error
        assert not (await tools.call("exec", {"command": f"echo y >> {place}/out/new2"})).is_error
        assert (await tools.call("read_file", {"path": f"{place}/data-link/secret.txt"})).is_error
        assert (
            "outside-secret"
            not in (await tools.call("exec", {"command": f"x={place}; cat $x/data-link/secret.txt"})).text
        )


async def test_without_the_restriction_files_outside_are_reachable_and_secrets_are_not(
    ws: Path, place: Path
) -> None:
    policy = SandboxPolicy(workspace=ws, restrict_to_workspace=False, secret_paths=(place / "outside",))
    (place / "else").mkdir()
    async with Sandbox(policy) as sandbox:
        tools = toolset(sandbox, "c")
        assert not (await tools.call("write_file", {"path": f"{place}/else/f", "content": "x"})).is_error
        assert "x" in (await tools.call("exec", {"command": f"cat {place}/else/f"})).text
        assert (await tools.call("read_file", {"path": f"{place}/outside/secret.txt"})).is_error
        assert (
            "outside-secret"
            not in (await tools.call("exec", {"command": f"cat {place}/outside/secret.txt"})).text
        )


async def test_the_network_opens_only_when_it_is_switched_on(ws: Path) -> None:
    probe = "python3 -c 'import socket; socket.socket().close(); print(\"socket\")'"
    for allowed in (False, True):
        policy = SandboxPolicy(workspace=ws, allow_network=allowed, max_level=2)
        async with Sandbox(policy) as sandbox:
            result = await toolset(sandbox, "c").call("exec", {"command": probe})
            assert (result.text.startswith("socket\n")) is allowed


async def test_with_namespaces_programs_talk_to_themselves_and_to_the_network_only_if_it_is_on(
    ws: Path,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        dial = f"import socket; socket.create_connection(('127.0.0.1', {port}), 2); print('through')"
        own = "from socket import *; s = create_server(('127.0.0.1', 0)); create_connection(s.getsockname())"
        for allowed in (False, True):
            async with Sandbox(SandboxPolicy(workspace=ws, allow_network=allowed)) as sandbox:
                assert (await sandbox.ready()).level == 3
                tools = toolset(sandbox, "c")
                assert not (await tools.call("exec", {"command": f'python3 -c "{own}"'})).is_error
                result = await tools.call("exec", {"command": f'python3 -c "{dial}"'})
                assert result.text.startswith("through\n") is allowed


async def test_a_cleaner_of_temporary_files_does_not_stop_commands_for_good(ws: Path) -> None:
    async with Sandbox(SandboxPolicy(workspace=ws)) as sandbox:
        tools = toolset(sandbox, "one")
        assert not (await tools.call("exec", {"command": "echo > $TMPDIR/x"})).is_error
        private = Path(await private_directory(sandbox, "one"))
        shutil.rmtree(private)
        assert not (await toolset(sandbox, "two").call("exec", {"command": "echo > $TMPDIR/x"})).is_error
        assert await private_directory(sandbox, "one") == str(private)
        assert private.is_dir()
        private.parent.chmod(0o700)
        shutil.rmtree(private.parent)
        with anyio.fail_after(60):
            while (await toolset(sandbox, "three").call("exec", {"command": "echo > $TMPDIR/x"})).is_error:
                await anyio.sleep(0.01)
        assert not (await tools.call("exec", {"command": "echo > $TMPDIR/x"})).is_error
        assert Path(await private_directory(sandbox, "one")).parent != private.parent


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where this host's temporary directories are, and no other's."""
    made = Path(tempfile.mkdtemp(prefix="for-tests-"))
    made.chmod(0o711)
    monkeypatch.setattr(tempfile, "tempdir", str(made))
    yield made
    shutil.rmtree(made)


REHEARSAL = """
import os, signal
os.register_at_fork(before=lambda: os.kill(os.getpid(), signal.SIGKILL))
from mcp_server.session import rehearse
rehearse("UTC")
"""


async def test_directories_of_killed_processes_are_removed_by_the_next_host_and_nobody_elses(
    ws: Path, tmp_path: Path, temporary: Path
) -> None:
    killed = await anyio.run_process(
        [sys.executable, "-c", REHEARSAL], env={"TMPDIR": str(temporary)}, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    (rehearsal,) = temporary.iterdir()
    # In no order: among many, what isn't to go has been seen when the last has gone.
    abandoned, young = (rehearsal, *(locked() for _ in range(20))), locked()
    (home := temporary / "picoclaw-home").mkdir()
    (home / "kept").write_text("somebody's")
    elsewhere = Path(shutil.move(locked(), tmp_path))
    (link := temporary / "picoclaw-link").symlink_to(elsewhere)
    with temporary_directory() as held:
        for path in (*abandoned, held, home, link, elsewhere):
            os.utime(path, (1, 1), follow_symlinks=False)
        async with Sandbox(SandboxPolicy(workspace=ws)) as sandbox:
            await sandbox.ready()
            with anyio.fail_after(60):
                while any(path.exists() for path in abandoned):
                    await anyio.sleep(0.01)
        assert held.exists()
    assert young.exists()
    assert (home / "kept").exists()
    assert (elsewhere / "left").exists()


def locked() -> Path:
    """Return a private directory as a process leaves it that is killed."""
    made = Path(tempfile.mkdtemp(prefix="picoclaw-"))
    (made / "lock").touch()
    (made / "left").write_text("behind")
    return made


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to see namespaces")
async def test_a_supervisor_that_dies_while_it_removes_a_big_tree_is_replaced_at_once(ws: Path) -> None:
    abandoned = locked()
    for number in range(20_000):
        (abandoned / str(number)).touch()
    os.utime(abandoned, (1, 1))
    async with Sandbox(SandboxPolicy(workspace=ws)) as sandbox:
        await sandbox.ready()
        assert sandbox.supervisor is not None
        first = sandbox.supervisor.process
        with anyio.fail_after(60):
            while not (below := removers(first.pid)):
                await anyio.sleep(0)
        below[0].suspend()
        try:
            first.kill()
            with anyio.fail_after(60):
                while (await toolset(sandbox, "c").call("exec", {"command": "true"})).is_error:
                    await anyio.sleep(0.01)
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):  # it has ended where another removed it all
                below[0].kill()
    shutil.rmtree(abandoned, ignore_errors=True)


def removers(supervisor: int) -> list[psutil.Process]:
    """Return the supervisor's children in its own namespace of processes: neither reapers nor workers."""
    mine = os.readlink(f"/proc/{supervisor}/ns/pid")
    children = psutil.Process(supervisor).children()
    return [one for one in children if os.readlink(f"/proc/{one.pid}/ns/pid") == mine]


@only_root
def test_a_readable_file_of_the_commands_uid_is_found_behind_others(tmp_path: Path) -> None:
    def found(*paths: tuple[str, Access]) -> bool:
        return owns_something_readable([Grant(path, access) for path, access in paths], 4242)

    (theirs := tmp_path / "theirs").write_text("")
    (ours := tmp_path / "ours").write_text("")
    os.chown(theirs, 4242, 4242)
    read, write = Access.READ_FILE, Access.READ_FILE | Access.WRITE_FILE
    assert found((str(theirs), read))
    assert found((str(ours), write), ("/proc", read), (str(tmp_path / "none"), read), (str(theirs), read))
    assert not found((str(ours), read), (str(theirs), write), (str(tmp_path / "none"), read))


@only_root
@pytest.mark.parametrize("owner", [0, 4242])
def test_a_workspace_of_root_is_written_by_the_host_itself(tmp_path: Path, owner: int) -> None:
    os.chown(tmp_path, owner, owner)
    assert commands_own(tmp_path) is (owner != 0)


async def test_full_walls_without_namespaces_are_no_warning(
    ws: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        async with Sandbox(SandboxPolicy(workspace=ws, max_level=2)) as sandbox:
            assert (await sandbox.ready()).level == 2
    [said] = [record for record in caplog.records if hasattr(record, "sandbox")]
    assert said.levelno == logging.INFO


# a machine whose administrator allows no namespaces (namespaces(7), /proc/sys/user), one namespace deep
WITHOUT_NAMESPACES = """
import sys, anyio
from pathlib import Path
from host.sandbox.client import Sandbox
from host.sandbox.policy import SandboxPolicy
from shared.store.sqlite.content import temporary_directory
from tests.sandbox.opened import toolset
for kind in ("user", "pid", "mnt"):
    Path(f"/proc/sys/user/max_{kind}_namespaces").write_text("0")
async def main():
    async with Sandbox(SandboxPolicy(workspace=Path(sys.argv[1]))) as sandbox:
        report = await sandbox.ready()
        print(report.level, *report.missing)
        print((await toolset(sandbox, "c").call("exec", {"command": "echo works"})).text)
anyio.run(main)
"""


def test_a_machine_without_namespaces_has_the_level_below_and_says_why(ws: Path) -> None:
    program = [sys.executable, "-c", WITHOUT_NAMESPACES, str(ws)]
    within = ["unshare", "--user", "--map-root-user", "--mount"]
    done = subprocess.run([*within, *program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found, ran = done.stdout.split("\n", 1)
    assert found.startswith("2 ")
    assert "namespaces (no process could be started: " in found
    assert "works" in ran


def owners(sandbox: Sandbox) -> list[int]:
    """Return whose the files in /proc are of each process that isn't root's."""
    found: list[int] = []
    for process in below(sandbox):
        with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError):  # it ends meanwhile
            if process.uids().real != 0:
                found.append(os.stat(f"/proc/{process.pid}/environ").st_uid)
    return found


async def test_no_process_of_the_sandbox_is_open_to_others_of_its_uid(
    sandbox: Sandbox, tools: SandboxToolset
) -> None:
    assert not (await tools.call("exec", {"command": "true"})).is_error
    # Of a process that is not dumpable the files in /proc are root's (proc(5)). One that is made for the
    # next conversation is open while it writes its own maps, alone in its namespaces.
    with anyio.fail_after(60):
        while set(owners(sandbox)) != {0}:
            await anyio.sleep(0.02)


async def test_commands_that_stay_root_s_have_namespaces_too(ws: Path) -> None:
    async with Sandbox(SandboxPolicy(workspace=ws, restrict_to_workspace=False)) as sandbox:
        report = await sandbox.ready()
        assert (report.layers["own_ipc"], report.missing) == (True, ("own_uid",))

"""One conversation's command doesn't stop the others: its share of processors, disk and files is bounded."""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import anyio
import pytest

from host.ports import Workspace
from host.sandbox.client import Sandbox
from host.sandbox.policy import Limits, SandboxPolicy
from host.tools.files_and_commands import SandboxToolset
from tests.sandbox.opened import read_text, toolset

SMALL = 96 << 20
BOMB = """python3 -c '
import os
while True:
    try:
        os.fork(); os.setsid()
    except OSError: pass
'"""
FILLERS = {
    "one file": "head -c 1G </dev/zero >$TMPDIR/x",
    "many files": "mkdir $TMPDIR/d; cd $_; for i in 1 2 3 4; do head -c 50M </dev/zero >$i & done; wait",
    "many empty files": "cd $TMPDIR; seq 100000 | xargs touch 2>&1 | tail -n 1",
    "a file without a name": "exec 3>$TMPDIR/x; rm $TMPDIR/x; head -c 1G </dev/zero >&3",
    "a closed directory": "mkdir $TMPDIR/d; cd $TMPDIR/d; exec 3>x; chmod 0 .; head -c 1G </dev/zero >&3",
    "no name, mapped": """python3 -c '
import mmap, os
file = open(os.environ["TMPDIR"] + "/m", "w+b"); file.truncate(1 << 29)
area = mmap.mmap(file.fileno(), 1 << 29); os.unlink(file.name); file.close()
for at in range(0, 1 << 29, 4096): area[at] = 1'""",
}


@pytest.fixture
def small_disk(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A small file system that private directories lie on."""
    disk = place / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SMALL},nr_inodes=20000,mode=1777", "none", str(disk)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("needs to mount")
    monkeypatch.setattr("tempfile.tempdir", str(disk))
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.fixture(params=[3, 2], ids=["level 3", "level 2"])
async def on_small_disk(ws: Path, small_disk: Path, request: pytest.FixtureRequest) -> AsyncIterator[Sandbox]:
    async with Sandbox(SandboxPolicy(workspace=ws, max_level=request.param)) as running:
        yield running


def free(disk: Path) -> int:
    status = os.statvfs(disk)
    assert status.f_favail > status.f_files * 0.8
    return status.f_bavail * status.f_frsize


@pytest.mark.parametrize("kind", FILLERS)
async def test_temporary_files_leave_room_on_their_disk(
    on_small_disk: Sandbox, small_disk: Path, kind: str
) -> None:
    tools, others = toolset(on_small_disk, "greedy"), toolset(on_small_disk, "other")
    await others.call("exec", {"command": "echo kept > $TMPDIR/kept"})
    with anyio.fail_after(60):
        result = await tools.call("exec", {"command": FILLERS[kind]})
    assert "its temporary files took too much" in result.text
    assert free(small_disk) > SMALL * 0.8
    again = await tools.call("exec", {"command": "ls -A $HOME; echo new > $HOME/new; cat $HOME/new"})
    assert again.text.startswith("new\n")
    assert (await others.call("exec", {"command": "cat $TMPDIR/kept"})).text.startswith("kept\n")


async def test_a_conversation_has_a_bound_on_a_large_disk_too(ws: Path) -> None:
    async with Sandbox(SandboxPolicy(workspace=ws, limits=Limits(temporary_bytes=32 << 20))) as sandbox:
        tools = toolset(sandbox, "greedy")
        result = await tools.call("exec", {"command": "head -c 90M </dev/zero >$TMPDIR/x; sleep 60"})
        assert "its temporary files took too much" in result.text
        few = await tools.call("exec", {"command": "head -c 20M </dev/zero >$TMPDIR/x; sleep 0.2"})
        assert not few.is_error


async def test_a_command_that_forks_and_begins_sessions_is_stopped_and_others_go_on(
    sandbox: Sandbox, tools: SandboxToolset
) -> None:
    others = toolset(sandbox, "other")
    await others.call("read_file", {"path": "ok.txt"})
    async with anyio.create_task_group() as group:
        results = []

        async def bomb() -> None:
            results.append(await tools.call("exec", {"command": BOMB}))
            group.cancel_scope.cancel()

        group.start_soon(bomb)
        while True:
            with anyio.fail_after(60):
                assert not (await others.call("read_file", {"path": "ok.txt"})).is_error
            await anyio.sleep(0.01)
    assert "too many processes" in results[0].text


async def test_sessions_one_after_the_other_are_many_and_at_once_they_are_few(tools: SandboxToolset) -> None:
    in_turn = await tools.call("exec", {"command": "for i in $(seq 50); do setsid true || echo no; done"})
    assert in_turn.text.startswith("[exit code 0")
    many = "for i in $(seq 50); do setsid sleep 300 2>&1 & done; wait -n"
    at_once = await tools.call("exec", {"command": many})
    assert "Operation not permitted" in at_once.text


async def test_a_command_leads_a_group_of_processes_in_the_session_of_whoever_starts_it(
    tools: SandboxToolset, level: int
) -> None:
    # At level 3 a session of its own would be one more that the reaper is asked for, for every command.
    look = "import os; print(os.getpgid(0) == os.getpid(), os.getsid(0) == os.getpid())"
    said = await tools.call("exec", {"command": f"exec python3 -c '{look}'"})
    assert said.text.startswith(f"True {level < 3}\n")


async def test_a_command_cannot_make_the_host_wait_for_a_file(
    sandbox: Sandbox, tools: SandboxToolset
) -> None:
    lease = (
        "import fcntl, os\n"
        "for name, what in (('CLAUDE.md', 1024), ('.', 1026)):\n"
        "    try: fcntl.fcntl(os.open(name, os.O_RDONLY), what, 1 if what == 1024 else 2)\n"
        "    except PermissionError: print('refused')"
    )
    await tools.call("write_file", {"path": "CLAUDE.md", "content": "words"})
    await tools.call("write_file", {"path": "lease.py", "content": lease})
    held = await tools.call("exec", {"command": "chmod u+w CLAUDE.md; python3 lease.py"})
    assert held.text.startswith("refused\nrefused\n")
    waiting = "rm CLAUDE.md; mkfifo CLAUDE.md; flock . sleep 300"
    await tools.call("exec", {"command": waiting, "background": True})
    with anyio.fail_after(60):
        while "(fifo)" not in (await sandbox.file(Workspace("host", sandbox.root), "list_dir", {}))["text"]:
            await anyio.sleep(0.01)
        assert await read_text(sandbox, "CLAUDE.md", 100) is None


WATCH = """python3 -c '
import ctypes, os, sys
libc = ctypes.CDLL(None)
queue = libc.inotify_init()
for path in sys.argv[1:]:
    print("watched" if libc.inotify_add_watch(queue, path.encode(), 0xFFF) >= 0 else "refused")
' $TMPDIR/.. $(for number in 1 2 3 4 5; do echo $TMPDIR/../$number $TMPDIR/../$number/home; done)"""


@pytest.mark.parametrize("uid", [None, 0], ids=["own uid", "shared uid"])
async def test_names_in_others_private_directories_can_neither_be_listed_nor_watched(
    ws: Path, uid: int | None
) -> None:
    async with Sandbox(SandboxPolicy(workspace=ws, max_level=2, uid=uid)) as sandbox:
        for number in range(4):
            await toolset(sandbox, f"other-{number}").call("exec", {"command": "echo > $TMPDIR/private"})
        tools = toolset(sandbox, "curious")
        watched = await tools.call("exec", {"command": f"{WATCH} | sort | uniq -c; ls $TMPDIR/.. 2>&1"})
        assert "11 refused" in watched.text
        assert "Permission denied" in watched.text

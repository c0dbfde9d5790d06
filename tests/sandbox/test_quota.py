"""A principal's workspace is bounded: what doesn't fit is refused or stopped; reading and deleting go on."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import anyio
import pytest

from host.http.file_streams import Streams, Upload, uploading
from host.ports import Allowance, Trust, Workspace
from host.sandbox.client import Sandbox
from host.sandbox.policy import SandboxPolicy, principal_uids
from host.sandbox.worker.files.files import attend
from host.sandbox.worker.frames import Channel, Config, Frame
from host.sandbox.worker.limits.quota import Count, Quota, known
from host.telemetry import Metrics
from host.tools.files_and_commands import SandboxToolset
from shared.errors import WorkspaceFull

MIB = 1 << 20
LIMIT = 32 * MIB


@pytest.fixture
async def sandbox(ws: Path, level: int) -> AsyncIterator[Sandbox]:
    policy = SandboxPolicy(workspace=ws, max_level=level, uids=principal_uids(None), isolation="weak")
    async with Sandbox(policy) as running:
        yield running


def bounded(
    sandbox: Sandbox, trust: Trust = Trust.MAIN, number: int = 0, most: int = LIMIT, name: str = ""
) -> SandboxToolset:
    root = sandbox.policy.principals_dir / f"random-{number}"
    uid = sandbox.policy.uids[number] if sandbox.policy.uids else None
    counted = (str(root), f"{root}.conversations")
    workspace = Workspace(
        f"conv-{number}-{trust}{name}", root, trust, Allowance(uid, counted, most_bytes=most)
    )
    return SandboxToolset(sandbox, sandbox.policy, workspace)


def held(sandbox: Sandbox, number: int = 0) -> int:
    root = sandbox.policy.principals_dir / f"random-{number}"
    return sum(path.lstat().st_blocks * 512 for path in root.rglob("*"))


async def run(tools: SandboxToolset, command: str) -> str:
    return (await tools.call("exec", {"command": command})).text


async def test_file_tools_refuse_what_does_not_fit_and_leave_nothing_of_it(sandbox: Sandbox) -> None:
    tools = bounded(sandbox)
    content = "x" * (10 * MIB)
    for number in range(3):
        written = await tools.call("write_file", {"path": f"{number}.txt", "content": content})
        assert not written.is_error, written.text
    for name, arguments in (
        ("write_file", {"path": "new.txt", "content": content}),
        ("append_file", {"path": "1.txt", "content": content}),
        ("append_file", {"path": "newer.txt", "content": content}),
    ):
        refused = await tools.call(name, arguments)
        assert refused.is_error
        assert refused.text == "workspace_full: 30.0 of 32 MiB used"
    names = {path.name for path in (sandbox.policy.principals_dir / "random-0").iterdir()}
    assert names == {"0.txt", "1.txt", "2.txt"}
    shorter = await tools.call("write_file", {"path": "0.txt", "content": "short", "overwrite": True})
    assert not shorter.is_error
    assert not (await tools.call("write_file", {"path": "new.txt", "content": content})).is_error


@pytest.mark.parametrize(
    "command",
    [
        "head -c 400M /dev/zero > big; sleep 60",
        "for i in $(seq 400); do head -c 1M /dev/zero > $i; done; sleep 60",
        "exec 3> gone; rm gone; head -c 400M /dev/zero >&3; sleep 60",
        "mkdir d; for i in $(seq 400); do head -c 1M /dev/zero > d/$i; done; mv d e; sleep 60",
    ],
    ids=["one file", "many files", "a file without a name", "moved"],
)
async def test_a_command_is_stopped_at_the_limit_and_deleting_goes_on(sandbox: Sandbox, command: str) -> None:
    tools = bounded(sandbox)
    text = await run(tools, command)
    assert "workspace_full: " in text
    assert "stopped: it would take more than the workspace may hold" in text
    assert held(sandbox) < LIMIT + 64 * MIB
    if held(sandbox) >= LIMIT:
        full = await run(tools, "echo more > more.txt; echo fine > $TMPDIR/x && cat $TMPDIR/x; ls")
        assert "fine" in full
        assert "more.txt: Permission denied" in full
        before = held(sandbox)
        for _ in range(3):
            await run(tools, "head -c 20M /dev/zero > another; cp big copy; echo x >> big")
        assert held(sandbox) <= before
    assert "[exit code 0" in await run(tools, "rm -rf ./*")
    assert "[exit code 0" in await run(tools, "echo room > again.txt")


RESERVE_BY_IOCTL = """
import fcntl, struct
for number in range(8):
    file = open(f"ioctl-{number}", "wb")
    for request in (0x40305828, 0x4030582A, 0x40305839):
        try:
            fcntl.ioctl(file, request, struct.pack("hxxxxxxqqiI16x", 0, 0, 900 << 20, 0, 0))
        except OSError as error:
            print(error.strerror)
"""


async def test_nothing_takes_disk_faster_than_it_can_be_counted(sandbox: Sandbox) -> None:
    tools = bounded(sandbox)
    await run(tools, "for i in 1 2 3 4; do fallocate -l 900M $i; done; sleep 1")
    assert held(sandbox) < LIMIT
    await tools.call("write_file", {"path": "reserve.py", "content": RESERVE_BY_IOCTL})
    assert "Operation not supported" in await run(tools, "python3 reserve.py")
    assert held(sandbox) < LIMIT
    code = "import os; os.posix_fallocate(os.open('p', os.O_CREAT | os.O_RDWR), 0, 1 << 20)"
    assert "[exit code 0" in await run(tools, f'python3 -c "{code}"')


async def test_a_command_adds_little_while_many_files_are_counted(sandbox: Sandbox) -> None:
    tools = bounded(sandbox, most=96 * MIB)
    await run(tools, "for d in $(seq 100); do mkdir $d; (cd $d; seq 100 | xargs touch); done")
    text = await run(tools, "head -c 1G /dev/zero > big; sleep 60")
    assert "stopped: it would take more than the workspace may hold" in text
    assert held(sandbox) < (96 + 64) * MIB


async def test_what_a_stranger_can_add_to_a_full_workspace_is_bounded(sandbox: Sandbox) -> None:
    tools = bounded(sandbox, Trust.UNTRUSTED)
    for number in range(20):
        await run(tools, f"head -c 400M /dev/zero > {number}")
    assert held(sandbox) < LIMIT + 128 * MIB


async def test_temporary_files_of_all_conversations_count(sandbox: Sandbox) -> None:
    tools = bounded(sandbox)
    text = await run(tools, "head -c 400M /dev/zero > $TMPDIR/big; sleep 60")
    assert "stopped: it would take more than the workspace may hold" in text
    beside = bounded(sandbox, name="beside")
    assert "more.txt: Permission denied" in await run(beside, "echo more > more.txt")
    assert "now; it was full before" in await run(tools, "rm $TMPDIR/big")
    assert "[exit code 0" in await run(beside, "echo more > more.txt")


async def test_a_quota_that_is_set_later_counts_temporary_files_from_then_on(sandbox: Sandbox) -> None:
    await run(bounded(sandbox, most=0), "head -c 40M /dev/zero > $TMPDIR/before; echo kept > file")
    later = bounded(sandbox, most=LIMIT)
    assert (await run(later, "ls $TMPDIR; cat file")).split()[:2] == ["home", "kept"]
    text = await run(later, "head -c 400M /dev/zero > $TMPDIR/big; sleep 60")
    assert "stopped: it would take more than the workspace may hold" in text


async def test_commands_at_once_go_past_the_limit_by_no_more_than_each_could_alone(sandbox: Sandbox) -> None:
    several = [bounded(sandbox, name=str(number)) for number in range(4)]
    write = "head -c 400M /dev/zero > {} & head -c 400M /dev/zero > $TMPDIR/big; sleep 60"
    async with asyncio.TaskGroup() as together:
        for number, tools in enumerate(several):
            together.create_task(run(tools, write.format(number)))
    temporary = [int((await run(tools, "du -sb $TMPDIR")).split()[0]) for tools in several]
    assert held(sandbox) + sum(temporary) < LIMIT + len(several) * 64 * MIB


async def test_files_without_a_name_count_whichever_command_holds_them(sandbox: Sandbox) -> None:
    hold = "exec 3> {0}; rm {0}; head -c 20M /dev/zero >&3; sleep 20"
    several = [bounded(sandbox, name=str(number)) for number in range(2)]
    async with asyncio.TaskGroup() as together:
        running = [together.create_task(run(each, hold.format(at))) for at, each in enumerate(several)]
    told = "\n".join(each.result() for each in running)
    assert "stopped: it would take more than the workspace may hold" in told
    assert (await sandbox.file(several[0]._workspace, "usage", {"max_age_s": 0}))["used"] < MIB
    assert "[exit code 0" in await run(several[1], "head -c 20M /dev/zero > kept")


CLOSING = """mkdir -p d/e; python3 -c '
import os, time
file = os.open("d/e/big", os.O_RDWR | os.O_CREAT)
for path, modes in (("d", (0,)), (".", (0, 0o700))):
    if os.fork() == 0:
        while True:
            for mode in modes:
                os.chmod(path, mode)
for _ in range(24):
    os.write(file, bytes(4 << 20))
    time.sleep(0.05)
time.sleep(20)'"""


async def test_closing_directories_again_and_again_hides_nothing(sandbox: Sandbox) -> None:
    tools = bounded(sandbox)
    assert "stopped: it would take more than the workspace may hold" in await run(tools, CLOSING)
    assert (await sandbox.file(tools._workspace, "usage", {"max_age_s": 0}))["used"] < LIMIT + 64 * MIB


MAPPED = """python3 -c '
import ctypes, os, sys, time
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
for _ in range(12):
    file = os.open("hidden", os.O_RDWR | os.O_CREAT)
    os.write(file, bytes(8 << 20))
    os.fsync(file)
    os.unlink("hidden")
    libc.mmap(None, 4096, 1, 2, file, 0)
    os.close(file)
time.sleep(20)'"""
UNSEEN = """python3 -c '
import ctypes, os, time
ctypes.CDLL(None).prctl(4, 0)
file = os.open("hidden", os.O_RDWR | os.O_CREAT)
os.unlink("hidden")
for _ in range(96):
    os.write(file, bytes(1 << 20))
time.sleep(20)'"""


@pytest.mark.parametrize("hold", [MAPPED, UNSEEN], ids=["mapped and closed", "nobody may look"])
async def test_what_the_disk_loses_counts_for_whoever_may_hide_it(sandbox: Sandbox, hold: str) -> None:
    tools = bounded(sandbox)
    assert "[exit code 0" in await run(tools, "true")
    assert "stopped: it would take more than the workspace may hold" in await run(tools, hold)
    assert (await sandbox.file(tools._workspace, "usage", {"max_age_s": 0}))["used"] < 9 * MIB


async def test_room_that_a_file_tool_makes_is_there_for_the_next_command(sandbox: Sandbox) -> None:
    tools = bounded(sandbox, most=8 * MIB)
    await run(tools, "head -c 400M /dev/zero > big; sleep 60")
    workspace = tools._workspace
    await sandbox.file(workspace, "delete_path", {"path": "big", "etags": [], "recursive": False})
    # Where a count took long, at a load, the next one waits; what a tool does next comes to it.
    with anyio.fail_after(60):
        while (await sandbox.file(workspace, "usage", {"max_age_s": 1e9}))["used"] >= 8 * MIB:
            pass
    assert "workspace_full" not in await run(tools, "echo room > again.txt")
    alone = await tools.call("write_file", {"path": "x", "content": "x" * (9 * MIB)})
    assert alone.text == "workspace_full: 0.0 of 8 MiB used; 9 MiB more never fit"


def test_what_was_freed_is_counted_once_that_may_be_done_although_nobody_asks(tmp_path: Path) -> None:
    big, page = tmp_path / "big", os.memfd_create("count")
    big.write_bytes(bytes(MIB))
    full = Quota(cast(Config, SimpleNamespace(counted=[tmp_path], page=page, most_bytes=MIB // 2)))
    # as if it had taken long a moment ago
    full._write(Count(full.count(), full._free(), time.monotonic(), 0.05))
    (ours, host), (watched, supervisor) = (map(Channel, socket.socketpair()) for _ in range(2))

    def remove(request: Frame) -> Frame:
        big.unlink()
        return {"ok": {}}

    def ask() -> None:
        host.send({"arguments": {}})
        host.receive()
        deadline = time.monotonic() + 60
        while known(page) >= MIB // 2 and time.monotonic() < deadline:
            pass
        supervisor.close()

    asking = threading.Thread(target=ask)
    asking.start()
    attend(watched, ours, remove, full.refresh)
    asking.join()
    assert known(page) < MIB // 2
    for channel in (ours, host, watched):
        channel.close()
    os.close(page)


async def test_what_one_principal_holds_is_nobody_elses_limit(sandbox: Sandbox) -> None:
    await run(bounded(sandbox), "head -c 400M /dev/zero > big")
    other = bounded(sandbox, number=1)
    assert "[exit code 0" in await run(other, "head -c 8M /dev/zero > small")
    unbounded = bounded(sandbox, number=2, most=0)
    assert "[exit code 0" in await run(unbounded, "head -c 64M /dev/zero > large")
    root = sandbox.policy.principals_dir / "random-1"
    used = await sandbox.file(other._workspace, "usage", {"max_age_s": 0})
    assert used["used"] >= 8 * MIB
    assert root.joinpath("small").stat().st_size == 8 * MIB


async def test_a_file_with_several_names_counts_once(sandbox: Sandbox) -> None:
    tools = bounded(sandbox)
    text = await run(tools, "head -c 20M /dev/zero > one; ln one two; ln one three; sleep 1")
    assert "[exit code 0" in text
    assert not (await tools.call("write_file", {"path": "x", "content": "x" * MIB})).is_error


async def test_what_is_counted_behind_a_file_with_several_names_counts_too(sandbox: Sandbox) -> None:
    tools = bounded(sandbox)
    await run(tools, "head -c 1M /dev/zero > one; ln one two; head -c 4M /dev/zero > $TMPDIR/big")
    used = await sandbox.file(tools._workspace, "usage", {"max_age_s": 0})
    assert 5 * MIB <= used["used"] < 6 * MIB


IN_DEPTHS = """python3 -c '
import os
for _ in range({}):
    os.mkdir("n" * 250)
    os.mkdir("beside")
    os.chdir("n" * 250)
open("big", "wb").write(bytes(8 << 20))'"""


async def test_an_upload_counts_as_it_comes_also_where_files_are_counted_meanwhile(sandbox: Sandbox) -> None:
    workspace = bounded(sandbox)._workspace
    await run(bounded(sandbox), "head -c 10M /dev/zero > before")
    upload = Upload(Streams(Metrics()), sandbox, workspace, 1 << 30)

    async def bring() -> None:
        async with uploading(upload, {"path": "big"}):
            for _ in range(24):
                await upload.write(bytes(2 * MIB))
                assert (await sandbox.file(workspace, "usage", {"max_age_s": 0}))["used"] >= upload.size

    with pytest.raises(WorkspaceFull):
        await bring()
    assert 20 * MIB <= upload.size <= 24 * MIB
    async with uploading(Upload(Streams(Metrics()), sandbox, workspace, 1 << 30), {"path": "big"}) as again:
        await again.write(bytes(20 * MIB))
        await again.commit({"path": "big"})
    used = (await sandbox.file(workspace, "usage", {"max_age_s": 0}))["used"]
    assert 30 * MIB <= used < 31 * MIB


@pytest.mark.parametrize(
    "hide",
    [
        "mkdir d; head -c 8M /dev/zero > d/big; chmod 000 d",
        "mkdir d; head -c 8M /dev/zero > d/big; chmod 400 d",
        "mkdir -p d/e; head -c 8M /dev/zero > d/e/big; chmod 100 d/e d",
        "head -c 8M /dev/zero > big; chmod 000 .",
        IN_DEPTHS.format(40),
    ],
    ids=["closed", "listed only", "entered only", "the workspace itself", "deep"],
)
async def test_what_is_hidden_from_whoever_looks_is_counted(sandbox: Sandbox, hide: str) -> None:
    await run(bounded(sandbox, most=0), hide)
    workspace = bounded(sandbox)._workspace
    used = (await sandbox.file(workspace, "usage", {"max_age_s": 0}))["used"]
    assert 8 * MIB <= used < 9 * MIB


async def test_a_workspace_with_directories_too_deep_to_be_counted_is_full_until_they_go(
    sandbox: Sandbox,
) -> None:
    await run(bounded(sandbox, most=0), IN_DEPTHS.format(1000))
    tools = bounded(sandbox)
    assert (await tools.call("write_file", {"path": "x", "content": "x"})).is_error
    beside = await run(tools, "head -c 64M /dev/zero > $TMPDIR/beside; sleep 20")
    assert "stopped: it would take more than the workspace may hold" in beside
    assert "workspace_full" in await run(tools, "rm -rf n* $TMPDIR/beside")
    assert not (await tools.call("write_file", {"path": "x", "content": "x"})).is_error


async def test_a_full_workspace_takes_a_file_in_place_of_one_as_long(sandbox: Sandbox) -> None:
    await run(bounded(sandbox, most=0), "head -c 12M /dev/zero > big; printf first > note")
    workspace = bounded(sandbox, most=8 * MIB)._workspace
    begun = await sandbox.file(workspace, "begin_upload", {"path": "note"})
    assert (await sandbox.file(workspace, "usage", {"max_age_s": 0}))["used"] > 8 * MIB
    with open(begun["descriptor"], "wb") as file:
        file.write(b"other")
        file.flush()
        wanted = {"path": "note", "temporary": begun["temporary"], "begun": begun["begun"]}
        await sandbox.file(workspace, "commit_upload", wanted, [file.fileno()])
    assert (workspace.root / "note").read_bytes() == b"other"


def test_root_is_needed_for_uids_alone() -> None:
    assert (len(principal_uids(None)) > 0) == (os.geteuid() == 0)

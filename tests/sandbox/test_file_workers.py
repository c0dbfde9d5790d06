"""The host's own sockets to the file workers: lost workers, stuck ones, lying ones, cancelled callers."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import psutil
import pytest

from host.ports import SandboxFault, Workspace
from host.sandbox import file_workers
from host.sandbox.client import Sandbox
from host.sandbox.file_workers import FileWorkers
from host.tools.files_and_commands import SandboxToolset
from tests.only_root import only_root
from tests.sandbox.opened import toolset


async def worker_of(sandbox: Sandbox, before: set[int]) -> psutil.Process:
    """Return the one file worker that wasn't there before: reapers, which come and wait, soon know of no
    locks: they let go of what they were forked with.
    """
    with anyio.fail_after(60):
        while True:
            found = [each for each in below(sandbox) if each.pid not in before and has_locks(each)]
            if len(found) == 1:
                return found[0]
            await anyio.sleep(0.01)


def has_locks(process: psutil.Process) -> bool:
    """Return whether a process has the memory in which file workers lock files."""
    with contextlib.suppress(FileNotFoundError):
        return any(
            os.readlink(each).startswith("/memfd:locks") for each in Path(f"/proc/{process.pid}/fd").iterdir()
        )
    return False


def below(sandbox: Sandbox) -> list[psutil.Process]:
    assert sandbox.supervisor is not None
    return psutil.Process(sandbox.supervisor.process.pid).children()


async def running(sandbox: Sandbox) -> psutil.Process:
    """Have a worker for the conversation ``one``, and return it."""
    await sandbox.ready()
    before = {each.pid for each in below(sandbox)}
    assert not (await toolset(sandbox, "one").call("read_file", {"path": "ok.txt"})).is_error
    return await worker_of(sandbox, before)


async def read(tools: SandboxToolset) -> str:
    return (await tools.call("read_file", {"path": "ok.txt"})).text


async def ask(sandbox: Sandbox, results: list[str]) -> None:
    """Read in the conversation ``one``."""
    results.append(await read(toolset(sandbox, "one")))


async def gone(process: psutil.Process) -> None:
    with anyio.fail_after(60), contextlib.suppress(psutil.NoSuchProcess):
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            await anyio.sleep(0.01)


@only_root
async def test_a_worker_that_was_killed_between_two_requests_is_not_missed(sandbox: Sandbox) -> None:
    worker = await running(sandbox)
    worker.kill()
    worker.wait(60)
    assert "fine" in await read(toolset(sandbox, "one"))


@only_root
async def test_a_worker_that_is_killed_at_work_fails_that_request_alone(sandbox: Sandbox) -> None:
    worker = await running(sandbox)
    worker.suspend()
    results: list[str] = []
    async with anyio.create_task_group() as group:
        group.start_soon(ask, sandbox, results)
        await anyio.wait_all_tasks_blocked()
        group.start_soon(ask, sandbox, results)
        await anyio.wait_all_tasks_blocked()
        assert "fine" in await read(toolset(sandbox, "two"))
        worker.kill()
    assert results[0] == "the sandbox process died; try again"
    assert "fine" in results[1]


@only_root
async def test_callers_at_once_share_one_worker(sandbox: Sandbox) -> None:
    await running(sandbox)
    before = {each.pid for each in below(sandbox)}
    tools = toolset(sandbox, "many")
    async with anyio.create_task_group() as group:
        for number in range(20):
            arguments = {"path": "all.txt", "content": f"{number}\n"}
            group.start_soon(tools.call, "append_file", arguments)
    await worker_of(sandbox, before)
    written = (sandbox.policy.workspace / "all.txt").read_text().split()
    assert sorted(map(int, written)) == list(range(20))


@only_root
async def test_what_a_cancelled_caller_asked_for_is_done_before_it_goes_on(sandbox: Sandbox) -> None:
    worker = await running(sandbox)
    worker.suspend()
    target = sandbox.policy.workspace / "late.txt"
    scope = anyio.CancelScope()

    async def write() -> None:
        with scope:
            await toolset(sandbox, "one").call("write_file", {"path": "late.txt", "content": "late"})
        assert target.read_text() == "late"

    async with anyio.create_task_group() as group:
        group.start_soon(write)
        await anyio.wait_all_tasks_blocked()
        scope.cancel()
        await anyio.wait_all_tasks_blocked()
        assert not target.exists()
        worker.resume()
    assert scope.cancelled_caught
    assert "late" in (await toolset(sandbox, "one").call("read_file", {"path": "late.txt"})).text
    assert worker.is_running()


@only_root
async def test_a_worker_that_is_stuck_is_given_up_and_killed_for_the_next(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = await running(sandbox)
    worker.suspend()
    with monkeypatch.context() as patch:
        patch.setattr(file_workers, "ANSWER_TIMEOUT_S", 0.2)
        assert await read(toolset(sandbox, "one")) == "the sandbox did not answer in time; try again"
    assert "fine" in await read(toolset(sandbox, "one"))
    await gone(worker)


@only_root
async def test_deleting_a_conversation_ends_what_its_worker_is_asked(sandbox: Sandbox) -> None:
    worker = await running(sandbox)
    worker.suspend()
    results: list[str] = []
    descriptors = psutil.Process().num_fds()
    async with anyio.create_task_group() as group:
        group.start_soon(ask, sandbox, results)
        group.start_soon(ask, sandbox, results)
        await anyio.wait_all_tasks_blocked()
        await sandbox.forget("one")
    assert results == ["the sandbox process died; try again"] * 2
    assert psutil.Process().num_fds() == descriptors - 1
    await gone(worker)
    assert "fine" in await read(toolset(sandbox, "one"))


@only_root
async def test_the_supervisor_starts_anew_and_so_do_the_workers(sandbox: Sandbox) -> None:
    await running(sandbox)
    assert sandbox.supervisor is not None
    psutil.Process(sandbox.supervisor.process.pid).kill()
    with anyio.fail_after(60):
        while "fine" not in await read(toolset(sandbox, "one")):
            await anyio.sleep(0.05)


# --- a worker that does as it likes: its end of the socket is ours


ONE = Workspace("one", Path("/"))


class Liar:
    """Says what it is told to, to whoever asks."""

    def __init__(self) -> None:
        self.workers = FileWorkers(self.fork, 30.0)
        self.ends: list[socket.socket] = []
        self.says = b""

    async def fork(self, workspace: Workspace, descriptors: list[int]) -> None:
        self.ends.append(socket.socket(fileno=os.dup(descriptors[0])))
        while descriptors:
            os.close(descriptors.pop())

    async def hear(self) -> None:
        """Take the next request, and answer."""
        end = self.ends[-1]
        end.setblocking(False)
        await anyio.wait_readable(end)
        end.recv(1 << 16)
        end.sendall(self.says)
        if self.says.endswith(b"-end"):
            end.close()

    async def ask(self) -> str:
        outcome = ""

        async def first() -> None:
            nonlocal outcome
            try:
                outcome = json.dumps(await self.workers.ask(ONE, "read_file", {}))
            except SandboxFault as fault:
                outcome = str(fault)

        with anyio.fail_after(60):
            async with anyio.create_task_group() as group:
                group.start_soon(first)
                await anyio.wait_all_tasks_blocked()
                await self.hear()
        return outcome


@pytest.fixture
async def liar() -> AsyncIterator[Liar]:
    made = Liar()
    yield made
    made.workers.let_go()
    for end in made.ends:
        with contextlib.suppress(OSError):
            end.close()


def frame(body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + body


@pytest.mark.parametrize(
    ("says", "outcome"),
    [
        (frame(b'{"ok": {"text": "hello"}}'), '{"text": "hello"}'),
        (frame(b'{"ok": "hello"}'), "the sandbox gave no valid answer"),
        (frame(b'{"error": {"a": 1}}'), "the sandbox gave no valid answer"),
        (frame(b"{}"), "the sandbox gave no valid answer"),
        (frame(b"[1]"), "the sandbox process died; try again"),
        (frame(b'{"ok": '), "the sandbox process died; try again"),
        (struct.pack(">I", 1 << 31) + b"x", "the sandbox process died; try again"),
        (struct.pack(">I", 100) + b"{-end", "the sandbox process died; try again"),
    ],
)
async def test_a_lying_worker_is_a_sentence(liar: Liar, says: bytes, outcome: str) -> None:
    liar.says = says
    assert await liar.ask() == outcome


async def test_what_a_worker_says_unasked_is_no_answer_to_the_next_request(liar: Liar) -> None:
    liar.says = frame(b'{"ok": {"text": "first"}}')
    assert "first" in await liar.ask()
    liar.ends[-1].sendall(frame(b'{"ok": {"text": "nobody asked"}}'))
    liar.says = frame(b'{"ok": {"text": "second"}}')
    assert "second" in await liar.ask()
    assert len(liar.ends) == 2


async def test_two_answers_to_one_request_do_not_answer_the_next(liar: Liar) -> None:
    liar.says = frame(b'{"ok": {"text": "first"}}') + frame(b'{"ok": {"text": "for the next"}}')
    assert "first" in await liar.ask()
    liar.says = frame(b'{"ok": {"text": "second"}}')
    assert "second" in await liar.ask()


async def test_a_worker_that_ends_at_once_is_a_sentence() -> None:
    async def fork(workspace: Workspace, descriptors: list[int]) -> None:
        os.close(descriptors.pop())

    workers = FileWorkers(fork, 30.0)
    for _ in range(2):
        with pytest.raises(SandboxFault, match="died; try again"):
            await workers.ask(ONE, "read_file", {})


async def test_a_worker_that_could_not_be_started_is_a_sentence_and_no_descriptor_stays(liar: Liar) -> None:
    async def fork(workspace: Workspace, descriptors: list[int]) -> None:
        raise SandboxFault("the sandbox could not start a process: no more of them")

    before = psutil.Process().num_fds()
    workers = FileWorkers(fork, 30.0)
    for _ in range(3):
        with pytest.raises(SandboxFault, match="no more of them"):
            await workers.ask(ONE, "read_file", {})
    assert psutil.Process().num_fds() == before


async def test_a_conversation_that_is_deleted_while_its_worker_starts_keeps_no_worker(liar: Liar) -> None:
    async def fork(workspace: Workspace, descriptors: list[int]) -> None:
        await liar.fork(workspace, descriptors)
        workers.forget(workspace.conversation)

    workers = FileWorkers(fork, 30.0)
    with pytest.raises(SandboxFault, match="died; try again"):
        await workers.ask(ONE, "read_file", {})
    liar.ends[-1].setblocking(False)
    assert liar.ends[-1].recv(1) == b""


async def test_a_worker_that_nobody_needs_is_let_go(liar: Liar) -> None:
    liar.workers, liar.says = FileWorkers(liar.fork, 0.0), frame(b'{"ok": {"text": "hello"}}')
    assert "hello" in await liar.ask()
    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            group.start_soon(liar.workers.retire_idle)
            await anyio.wait_readable(liar.ends[-1])
            group.cancel_scope.cancel()
    assert liar.ends[-1].recv(1) == b""

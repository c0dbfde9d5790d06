"""The host's sockets to the file workers, one per conversation.

The supervisor forks and confines a worker and gives it its end of a socket that the host made. Requests then
go straight there and back: passing them on took longer than reading a file does.
"""

import contextlib
import os
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import anyio

from host.ports import SandboxFault, Workspace
from host.sandbox.supervisor import ANSWER_TIMEOUT_S, CANCEL_TIMEOUT_S, Disconnected, Wire, checked, encode

MAX_WORKERS: Final = 256
DIED: Final = "the sandbox process died; try again"
READING: Final = {
    *("read_file", "read_text", "list_dir", "survey"),
    *("list_files", "open_file", "begin_upload", "reserve", "mark_files", "changed_files"),
}
UNKNOWN: Final = "it is not known what has been done: look before you try again"

Fork = Callable[[Workspace, list[int]], Awaitable[object]]


class FileWorkers:
    """Workers by conversation. ``fork`` has one started on a descriptor, or raises ``SandboxFault``."""

    def __init__(self, fork: Fork, idle_s: float) -> None:
        self._fork = fork
        self._idle_s = idle_s
        self._workers: dict[str, _Worker] = {}  # last used last

    async def ask(
        self, workspace: Workspace, op: str, arguments: Mapping[str, Any], descriptors: Sequence[int] = ()
    ) -> dict[str, Any]:
        """Have a file tool run in the conversation's worker; one after the other.

        Raises ``SandboxFault``. A cancelled caller's request is finished, or its worker ended, first.
        """
        request = encode({"tool": op, "arguments": arguments, "descriptors": len(descriptors)})
        conversation = workspace.conversation
        seen = _seen(workspace)
        if (known := self._workers.get(conversation)) and (known.workspace, known.seen) != (workspace, seen):
            self.forget(conversation)
        worker = self._workers.pop(conversation, None) or _Worker(workspace, seen)
        self._make_room()
        self._workers[conversation] = worker
        async with worker.busy:
            if not worker.is_there():
                worker.wire = await self._start(workspace)
                if not worker.is_there():
                    raise SandboxFault(DIED)
            try:
                answer = await worker.exchange(request, descriptors)
            except _Lost as lost:
                raise SandboxFault(f"{lost}; {'try again' if op in READING else UNKNOWN}") from None
        return _with_descriptor(answer)

    async def _start(self, workspace: Workspace) -> Wire:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        descriptors = [theirs.detach()]
        try:
            await self._fork(workspace, descriptors)
        except BaseException:
            ours.close()
            raise
        finally:
            for descriptor in descriptors:  # not handed over
                socket.close(descriptor)
        return Wire(ours)

    def forget(self, conversation: str) -> None:
        """Let go of a conversation's worker. The supervisor kills one that stays before it starts another."""
        worker = self._workers.pop(conversation, None)
        if worker is not None:
            worker.let_go()

    def let_go(self, paths: Sequence[str] = ("/",)) -> None:
        """Let go of all of them that work below these."""
        for conversation, worker in list(self._workers.items()):
            if any(worker.workspace.root.is_relative_to(path) for path in paths):
                self.forget(conversation)

    async def retire_idle(self) -> None:
        """Let go of workers that nobody needs, for ever."""
        while True:
            await anyio.sleep(self._idle_s / 4)
            limit = time.monotonic() - self._idle_s
            for conversation, worker in list(self._workers.items()):
                if worker.used < limit and not worker.busy.locked():
                    self.forget(conversation)

    def _make_room(self) -> None:
        if len(self._workers) >= MAX_WORKERS:
            idle = next((name for name, worker in self._workers.items() if not worker.busy.locked()), None)
            if idle is not None:
                self.forget(idle)


def _seen(workspace: Workspace) -> list[int]:
    """Return which files those names are that may only be read: a worker's rules hold files, not names."""
    if workspace.allowance is None:
        return []
    return [_inode(path) for path in workspace.allowance.readable]


def _inode(path: str) -> int:
    """Return the inode of what is at a path, 0 if there is nothing."""
    try:
        return Path(path).lstat().st_ino
    except OSError:
        return 0


class _Lost(Exception):
    """What became of a request will never be heard."""


class _Worker:
    """A worker's socket; whoever holds ``busy`` may use it."""

    def __init__(self, workspace: Workspace, seen: Sequence[int]) -> None:
        self.workspace = workspace
        self.seen = seen
        self.busy = anyio.Lock(fast_acquire=True)
        self.used = time.monotonic()
        self.wire: Wire | None = None
        self._is_let_go = False

    def is_there(self) -> bool:
        """Return whether there is one that has not ended. Raises ``SandboxFault`` if it is let go."""
        if self._is_let_go:
            self._close()
            raise SandboxFault(DIED)
        if self.wire is not None and self.wire.has_ended():
            self._close()
        return self.wire is not None

    async def exchange(self, request: bytes, descriptors: Sequence[int]) -> dict[str, Any]:
        """Send a request and return its answer, with ``taken`` descriptors. Raises ``_Lost``."""
        self.used = time.monotonic()
        wire, is_sent = self.wire, False
        assert wire is not None  # noqa: S101 - whoever holds ``busy`` has seen to it
        try:
            with anyio.fail_after(ANSWER_TIMEOUT_S):
                await wire.write(request, descriptors)
                is_sent = True
                answer = await wire.receive()
                return {**answer, "taken": wire.take()}
        except TimeoutError:
            self._close()
            raise _Lost("the sandbox did not answer in time") from None
        except Disconnected:
            self._close()
            raise _Lost("the sandbox process died") from None
        except BaseException:  # cancelled: what the worker does is done before the caller goes on
            if not (is_sent and await _ends(wire)):
                self._close()
            raise
        finally:
            if self._is_let_go:
                self._close()

    def let_go(self) -> None:
        """Close our end, at which the worker leaves, also in the middle of a request."""
        self._is_let_go = True
        if self.wire is not None and self.busy.locked():
            self.wire.shut_down()
        else:
            self._close()

    def _close(self) -> None:
        if self.wire is not None:
            self.wire.close()
            self.wire = None


def _with_descriptor(answer: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an answer carries, and the descriptor that came along. Raises ``SandboxFault``."""
    taken: list[int] = answer["taken"]
    try:
        content = checked(answer)
        if taken:
            content["descriptor"] = taken.pop()
        return content
    finally:
        for descriptor in taken:
            os.close(descriptor)


async def _ends(wire: Wire) -> bool:
    """Wait for the answer to what was sent; return whether it came."""
    with (
        anyio.CancelScope(shield=True),
        contextlib.suppress(Disconnected),
        anyio.move_on_after(CANCEL_TIMEOUT_S),
    ):
        await wire.receive()
        for descriptor in wire.take():
            os.close(descriptor)
        return True
    return False

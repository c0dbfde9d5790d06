"""The host's side of the sandbox: one supervisor process, many requests at once."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import logging
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

import anyio
from anyio.abc import TaskGroup

from host.ports import SandboxFault, SandboxReport
from host.sandbox.file_workers import DIED, FileWorkers
from host.sandbox.policy import SandboxPolicy, Trust
from host.sandbox.wire import (
    ANSWER_TIMEOUT_S,
    CANCEL_TIMEOUT_S,
    Disconnected,
    Wire,
    checked,
    configuration,
    report_of,
)

if TYPE_CHECKING:
    from host.tools.files_and_commands import SandboxToolset

SUPERVISOR: Final = Path(__file__).parent / "worker" / "main.py"
READY_TIMEOUT_S: Final = 20.0
END_TIMEOUT_S: Final = 8.0
EXEC_GRACE_S: Final = 10.0
RESTART_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 30.0
"""Between two starts of a supervisor that cannot start, in seconds."""
HOST: Final = "\0host"  # the host's own reads; no conversation can have this id
TIDY: Final = "\0tidy"

logger = logging.getLogger("picoclaw.sandbox")


class Sandbox:
    """The door to files and commands. One per host; enter and leave it in the same task.

    Entering starts the supervisor and returns at once: the self-test runs beside the rest of the start, and
    calls wait for it. Leaving ends every process of the sandbox.
    """

    def __init__(self, policy: SandboxPolicy) -> None:
        self.policy = policy
        self._report = SandboxReport(0, missing=("the self-test has not finished",))
        self._ready = anyio.Event()
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._wire: Wire | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._temporary = ""
        self._cannot_start = False
        self._trust = {HOST: Trust.MAIN, TIDY: Trust.MAIN}  # who isn't here yet may change nothing obeyed
        self._tasks: TaskGroup = anyio.create_task_group()
        self._files = FileWorkers(self._fork_worker, policy.limits.worker_idle_s)

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        if platform.system() == "Linux":
            self._start()
            self._tasks.start_soon(self._keep_running)
            self._tasks.start_soon(self._files.retire_idle)
        else:
            self._settle(SandboxReport(0, missing=(f"no sandbox on {platform.system()}; use the container",)))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tasks.cancel_scope.cancel()
        await self._tasks.__aexit__(None, None, None)
        with anyio.CancelScope(shield=True):
            self._fail_all("the sandbox is closed")
            await self._stop()

    @property
    def report(self) -> SandboxReport:
        """What holds. Level 0 until the self-test has finished."""
        return self._report

    async def ready(self) -> SandboxReport:
        """Wait for the self-test and return its report."""
        await self._ready.wait()
        return self._report

    def toolset(
        self, conversation_id: str, workspace: Path | None = None, *, trust: Trust = Trust.MAIN
    ) -> SandboxToolset:
        """Return the tools of one conversation, bound to it for good, as is its trust."""
        from host.tools.files_and_commands import SandboxToolset

        if self._trust.get(conversation_id, Trust.UNTRUSTED) is not trust:
            self._files.forget(conversation_id)  # a worker that was needed before anybody knew
        self._trust[conversation_id] = trust
        return SandboxToolset(self, conversation_id, workspace or self.policy.workspace, trust)

    async def read_text(self, path: str, limit: int) -> str | None:
        """Read a text file of the workspace through the agents' own door.

        Returns at most ``limit`` bytes decoded as UTF-8, or None if the file is absent or refused.
        """
        try:
            answer = await self.file(HOST, self.policy.workspace, "read_text", {"path": path, "limit": limit})
        except SandboxFault:
            return None
        text = answer.get("text")
        return text if isinstance(text, str) else None

    async def survey(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Look at the workspace's texts and skills (``worker/survey.py``) in one round trip.

        The answer comes out of the sandbox: its shape is the caller's to check. Raises ``SandboxFault``.
        """
        return await self.file(HOST, self.policy.workspace, "survey", arguments)

    async def save_file(self, conversation_id: str, path: str, data: bytes) -> None:
        """Write a file of the workspace through a conversation's own door; one that is there is replaced.

        Raises ``SandboxFault``. About 20 MB fit into a request.
        """
        encoded = await anyio.to_thread.run_sync(lambda: base64.b64encode(data).decode())
        arguments = {"path": path, "data": encoded}
        await self.file(conversation_id, self.policy.workspace, "save_file", arguments)

    async def remove_folder(self, path: str) -> None:
        """Remove a folder of the workspace and the files in it, if it is there. Raises ``SandboxFault``.

        In a worker of its own: agents may have filled it, and nobody's turn waits for that.
        """
        await self.file(TIDY, self.policy.workspace, "remove_folder", {"path": path})

    async def forget(self, conversation_id: str) -> None:
        """End a conversation's worker and commands, and remove its private directory."""
        self._files.forget(conversation_id)
        self._trust.pop(conversation_id, None)
        with contextlib.suppress(SandboxFault):
            await self.request("forget", conversation_id, self.policy.workspace, {}, ANSWER_TIMEOUT_S)

    async def private_directory(self, conversation_id: str) -> str:
        """Return a conversation's TMPDIR. Raises ``SandboxFault``."""
        answer = await self.request(
            "place", conversation_id, self.policy.workspace, {}, within=ANSWER_TIMEOUT_S
        )
        return str(answer["temporary"])

    async def require_level(self) -> None:
        """Wait for the self-test; raises ``SandboxFault`` when less holds than the policy demands."""
        if not self._ready.is_set():
            with anyio.move_on_after(READY_TIMEOUT_S):
                await self._ready.wait()
        report = self._report
        if report.level < self.policy.min_level:
            raise SandboxFault(
                f"refused: the sandbox reached level {report.level}, {self.policy.min_level} is required "
                f"(missing: {', '.join(report.missing)})"
            )

    async def file(
        self, conversation_id: str, workspace: Path, tool: str, arguments: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Run a file tool in a conversation's worker (``worker/filework.py``). Raises ``SandboxFault``."""
        await self.require_level()
        return await self._files.ask(conversation_id, workspace, tool, arguments)

    async def _fork_worker(self, conversation_id: str, workspace: Path, descriptors: list[int]) -> None:
        await self.request("worker", conversation_id, workspace, {}, ANSWER_TIMEOUT_S, descriptors)

    async def request(
        self,
        op: str,
        conversation: str,
        workspace: Path,
        fields: Mapping[str, Any],
        within: float,
        descriptors: list[int] | None = None,
    ) -> dict[str, Any]:
        """Make one request of the supervisor. Raises ``SandboxFault``; a cancelled caller's command is ended
        first.

        ``within`` (seconds) is a last resort, the sandbox's own limits come first. ``descriptors`` are handed
        over with it: once sent they are closed here, and gone from the list.
        """
        await self.require_level()
        number = next(self._ids)
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        words = self.policy.read_only(self._trust.get(conversation, Trust.UNTRUSTED))
        frame = {"id": number, "op": op, "conversation": conversation, "workspace": str(workspace), **fields}
        frame["words"] = words
        if descriptors:
            frame["descriptors"] = len(descriptors)
        try:
            await self._send(frame, descriptors or ())
            while descriptors:
                os.close(descriptors.pop())
            with anyio.fail_after(within):
                answer = await asyncio.shield(future)
        except TimeoutError:
            await self._cancel(number, future)
            raise SandboxFault("the sandbox did not answer in time") from None
        except asyncio.CancelledError:
            await self._cancel(number, future)
            raise
        finally:
            self._waiting.pop(number, None)
        return checked(answer)

    async def _send(self, frame: Mapping[str, Any], descriptors: Sequence[int] = ()) -> None:
        if self._wire is None:
            raise SandboxFault("the sandbox is restarting; try again")
        try:
            await self._wire.send(frame, descriptors)
        except Disconnected:
            raise SandboxFault("the sandbox is restarting; try again") from None
        except (ValueError, TypeError) as error:
            raise SandboxFault(f"the arguments can't be passed on: {error}") from None

    async def _cancel(self, number: int, future: asyncio.Future[dict[str, Any]]) -> None:
        """Have the command of a request ended, and wait until it is gone."""
        with anyio.CancelScope(shield=True), contextlib.suppress(SandboxFault):
            await self._send({"op": "cancel", "target": number})
            with anyio.move_on_after(CANCEL_TIMEOUT_S):
                await asyncio.wait([future])

    # --- the supervisor's life

    def _start(self) -> None:
        """Start the supervisor: nothing inherited but its socket, and an environment without secrets."""
        self._temporary = tempfile.mkdtemp(prefix="picoclaw-")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - our own file and interpreter
                [sys.executable, "-I", "-S", "-E", str(SUPERVISOR), str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={"LANG": "C.UTF-8", "PATH": self.policy.path},
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
                cwd="/",
            )
        self._wire = Wire(ours)

    async def _keep_running(self) -> None:
        """Read answers; when the supervisor dies, fail what waits and start another.

        One that can't even start is tried again less and less often, and the report says why meanwhile.
        """
        pause = RESTART_PAUSE_S
        while True:
            self._cannot_start = False
            try:
                await self._converse()
            except Disconnected:
                logger.error("the sandbox supervisor ended; restarting it")
            self._fail_all(DIED)
            with contextlib.suppress(OSError):  # without a free descriptor it can't be waited for
                await self._stop()
            if self._cannot_start:
                pause = min(pause * 2, LONGEST_PAUSE_S)
            else:
                self._ready = anyio.Event()
                pause = RESTART_PAUSE_S
            await anyio.sleep(pause)
            while not self._started():  # noqa: ASYNC110 - nothing tells of a free descriptor
                await anyio.sleep(pause)

    def _started(self) -> bool:
        try:
            self._start()
        except OSError as error:
            logger.error("the sandbox supervisor could not be started: %s", error.strerror)
            return False
        return True

    async def _converse(self) -> None:
        wire = self._wire
        assert wire is not None  # noqa: S101 - set by _start
        await wire.send(configuration(self.policy, self._temporary))
        while True:
            frame = await wire.receive()
            if "ready" in frame:
                self._settle(report_of(frame["ready"]))
            elif "fatal" in frame:
                logger.error("the sandbox supervisor failed", extra={"error": str(frame["fatal"])})
                if not self._report.level:
                    self._cannot_start = True
                    self._settle(SandboxReport(0, missing=(str(frame["fatal"]),)))
            else:
                self._deliver(frame)

    def _settle(self, report: SandboxReport) -> None:
        self._report = report
        self._ready.set()
        fields = {
            "level": report.level,
            "landlock_abi": report.landlock_abi,
            "missing": list(report.missing),
            "uid": report.uid,
            "own_uid": report.own_uid,
        }
        logger.log(
            logging.INFO if report.level >= 2 else logging.WARNING, "sandbox ready", extra={"sandbox": fields}
        )
        if self.policy.min_level < 2:
            logger.warning("SANDBOX_MIN_LEVEL=%d: tools run with less than full", self.policy.min_level)
        for warning in report.warnings:
            logger.warning("%s", warning)

    def _deliver(self, frame: dict[str, Any]) -> None:
        number = frame.get("id")
        future = self._waiting.get(number) if isinstance(number, int) else None
        if future is not None and not future.done():
            future.set_result(frame)

    def _fail_all(self, sentence: str) -> None:
        self._files.let_go()
        for future in self._waiting.values():
            if not future.done():
                future.set_result({"error": sentence})

    async def _stop(self) -> None:
        """Close the socket, wait for the supervisor to end what is below it, and clean up."""
        if self._wire is not None:
            self._wire.close()
            self._wire = None
        if self._process is not None:
            await _wait(self._process)
            self._process = None
            await anyio.to_thread.run_sync(_remove, self._temporary)


def _remove(directory: str) -> None:
    """Remove what the supervisor could not, having been killed; it removes everything itself when it ends."""
    with contextlib.suppress(OSError, RecursionError):
        Path(directory).chmod(0o700)
        shutil.rmtree(directory)


async def _wait(process: subprocess.Popen[bytes]) -> None:
    """Wait for a process without a thread (pidfd_open(2)); kill it when it takes too long."""
    if process.poll() is not None:
        return
    descriptor = os.pidfd_open(process.pid)
    try:
        with anyio.move_on_after(END_TIMEOUT_S):
            await anyio.wait_readable(descriptor)
        if process.poll() is None:
            process.kill()
            await anyio.wait_readable(descriptor)
            process.wait()
    finally:
        os.close(descriptor)

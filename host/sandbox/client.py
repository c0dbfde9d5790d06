"""The host's side of the sandbox: one supervisor process, many requests at once."""

import asyncio
import contextlib
import itertools
import logging
import math
import os
import platform
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Self

import anyio
from anyio.abc import ByteStream, TaskGroup

from host.ports import Allowance, SandboxFault, Workspace
from host.sandbox.file_workers import DIED, FileWorkers
from host.sandbox.policy import SandboxPolicy, SandboxReport, report_of
from host.sandbox.supervisor import (
    ANSWER_TIMEOUT_S,
    CANCEL_TIMEOUT_S,
    Disconnected,
    Supervisor,
    checked,
    connected_program,
)
from shared.store.contract import Turns

READY_TIMEOUT_S: Final = 20.0
EXEC_GRACE_S: Final = 10.0
RESTART_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 30.0
"""Between two starts of a supervisor that cannot start, in seconds."""
HOST: Final = "\0host"
"""Who reads for the host itself, and for the operator; no conversation can have this id."""
SURVEYOR: Final = f"{HOST} at principals'"
VIEWER: Final = "\0viewer"
VIEWERS: Final = 2
"""Files that are looked into at once, each by a process of 512 MiB at most."""
PACKAGES: Final = ("PIL", "pypdf", "typing_extensions")
PROGRAM: Final = Path(__file__).parent / "view.py"
LOGGED: Final = ("level", "landlock_abi", "missing", "uid", "own_uid")
"""What the log has of the self-test's report."""

logger = logging.getLogger("picoclaw.sandbox")


class Sandbox:
    """Implements ``host.ports.Sandbox``. One per host; enter and leave it in the same task.

    Entering starts the supervisor and returns at once: the self-test runs beside the rest of the start, and
    calls wait for it. Leaving ends every process of the sandbox.
    """

    def __init__(self, policy: SandboxPolicy) -> None:
        self.policy = policy
        self.root = policy.workspace
        self.report = SandboxReport(0, missing=("the self-test has not finished",), tested=False)
        self.supervisor: Supervisor | None = None
        self._ready = anyio.Event()
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._tasks: TaskGroup = anyio.create_task_group()
        directory = policy.principals_dir
        allowance = Allowance(None, (), (str(directory),), apart=False)
        self._surveyor = Workspace(SURVEYOR, directory, allowance=allowance)
        self._viewers = anyio.Semaphore(VIEWERS)
        self._turns = Turns()
        self._files = FileWorkers(self._fork_worker, policy.limits.worker_idle_s)

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        if platform.system() == "Linux":
            self._started()
            self._tasks.start_soon(self._keep_running)
            self._tasks.start_soon(self._files.retire_idle)
        else:
            self._settle(SandboxReport(0, missing=(f"no sandbox on {platform.system()}; use the container",)))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._tasks.cancel_scope.cancel()
        await self._tasks.__aexit__(None, None, None)
        with anyio.CancelScope(shield=True):
            self._fail_all("the sandbox is closed")
            await self._stop()

    async def ready(self) -> SandboxReport:
        """Wait for the self-test and return its report."""
        await self._ready.wait()
        return self.report

    async def _require(self, workspace: Workspace) -> None:
        """Wait for the self-test; raises ``SandboxFault`` when less holds than the policy demands, or where
        a principal's files would not be apart from the others'.
        """
        if not self._ready.is_set():
            with anyio.move_on_after(READY_TIMEOUT_S):
                await self._ready.wait()
        level, wanted = self.report.level, self.policy.min_level
        if level < wanted:
            missing = ", ".join(self.report.missing)
            raise SandboxFault(
                f"refused: the sandbox reached level {level}, {wanted} is required (missing: {missing})"
            )
        allowance = workspace.allowance
        if allowance is None or not allowance.apart:
            return
        alone = self.report.level > 2 or self.policy.isolation == "weak" or allowance.uid is not None
        if why := self.too_weak or ("" if alone else "this principal has no uid of its own"):
            raise SandboxFault(f"refused: {why}")

    @property
    def too_weak(self) -> str:
        """Why no principal may work here, "" if all may."""
        if loosened := self.policy.loosened:
            return f"principals would see each other's files with {loosened}"
        found, wanted = self.report.isolation, self.policy.isolation
        if found.level == "uid" or (found.level == wanted == "weak"):
            return ""
        return f"principals are not apart enough ({found.reason}); principals.isolation is {wanted}"

    async def file(
        self, workspace: Workspace, op: str, arguments: Mapping[str, Any], descriptors: Sequence[int] = ()
    ) -> dict[str, Any]:
        """Run a file tool in a conversation's worker. Raises ``SandboxFault``."""
        await self._require(workspace)
        return await self._files.ask(workspace, op, arguments, descriptors)

    async def survey(self, workspace: Workspace, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Look at a directory as ``worker/files/directories.py`` does. Raises ``SandboxFault``.

        One worker looks at those of all principals, where Landlock keeps it inside them.
        """
        await self._require(workspace)
        if workspace.allowance is not None and self.report.landlock_abi:
            asked = {**asked, "root": str(workspace.root), "uid": workspace.allowance.uid}
            workspace = self._surveyor
        return await self._files.ask(workspace, "survey", asked)

    async def run(self, workspace: Workspace, command: Mapping[str, Any]) -> dict[str, Any]:
        """Run a command; see the port."""
        within = 0.0 if command.get("background") else command["timeout_ms"] / 1000
        return await self.request("exec", workspace, command, within + EXEC_GRACE_S)

    async def jobs(self, workspace: Workspace, action: str, job: int | None = None) -> dict[str, Any]:
        """List, read or kill background commands; see the port."""
        return await self.request("job", workspace, {"action": action, "job": job})

    @contextlib.asynccontextmanager
    async def program(
        self, workspace: Workspace, words: Sequence[str], environment: Mapping[str, str]
    ) -> AsyncIterator[ByteStream]:
        """Run a program, confined as commands are, and yield its stdin and stdout.

        ``words``: the program, looked up in the PATH inside, and its arguments; no shell reads them.
        ``environment``: what it gets besides what every command has; nothing is the host's. It is held to a
        command's memory and processes and ends, with everything it started, when the context is left, the
        conversation is forgotten, or the sandbox or the host goes. Raises ``SandboxFault`` below the required
        level; a program that can't be started, or dies, is an end of the stream.
        """
        await self._require(workspace)
        fields = {"program": list(words), "environment": dict(environment)}

        async def attend(theirs: list[int]) -> str:
            try:
                ended = await self.request("exec", workspace, fields, math.inf, theirs)
            except SandboxFault as fault:
                logger.warning("A program in the sandbox failed: %s", fault)
                return str(fault)
            return str(ended.get("output") or "").rstrip().rpartition("\n")[2]

        async with connected_program(attend) as stream:
            yield stream

    async def forget(self, conversation: str) -> None:
        """End a conversation's worker and commands, and remove its private directory."""
        self._files.forget(conversation)
        with contextlib.suppress(SandboxFault):
            await self.request("forget", Workspace(conversation, self.root), {})

    async def remove(self, paths: Sequence[str]) -> bool:
        """End what works in directories of principals, and remove them; False if something is left.

        Raises ``SandboxFault``.
        """
        self._files.let_go(paths)
        answer = await self.request("remove", Workspace(HOST, self.root), {"paths": list(paths)}, math.inf)
        return not answer.get("left")

    async def view(self, descriptor: int, kind: str, **asked: int) -> dict[str, Any]:
        """Look into an open file, which stays open; see the port and ``view.py``."""
        name = f"{VIEWER} {kind} {next(self._ids)}"
        async with self._turns.own(), self._viewers:
            try:
                workspace, wanted = Workspace(name, self.root), {"kind": kind, **asked}
                return await self._files.ask(workspace, "view", wanted, [descriptor])
            finally:
                self._files.forget(name)

    async def _fork_worker(self, workspace: Workspace, descriptors: list[int]) -> None:
        op, fields = "worker", dict[str, Any]()
        if workspace is self._surveyor:
            op = "surveyor"
        elif workspace.conversation.startswith(VIEWER):
            kind = workspace.conversation.split()[1]
            op, fields = "viewer", {"program": str(PROGRAM), "kind": kind, "packages": _places(PACKAGES)}
        await self.request(op, workspace, fields, descriptors=descriptors)

    async def request(
        self,
        op: str,
        workspace: Workspace,
        fields: Mapping[str, Any],
        within: float = ANSWER_TIMEOUT_S,
        descriptors: list[int] | None = None,
    ) -> dict[str, Any]:
        """Make one request of the supervisor. Raises ``SandboxFault``; a cancelled caller's command is ended
        first.

        ``within`` (seconds) is a last resort, the sandbox's own limits come first. ``descriptors`` are handed
        over with it: once sent they are closed here, and gone from the list.
        """
        await self._require(workspace)
        number = next(self._ids)
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        frame = {
            **fields,
            "id": number,
            "op": op,
            "conversation": workspace.conversation,
            "workspace": str(workspace.root),
            "words": self.policy.read_only(workspace.trust),
            "allowance": None if workspace.allowance is None else asdict(workspace.allowance),
            "descriptors": len(descriptors or ()),
        }
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
        try:
            if self.supervisor is None:
                raise Disconnected
            await self.supervisor.wire.send(frame, descriptors)
        except Disconnected:
            raise SandboxFault("the sandbox is restarting; try again") from None

    async def _cancel(self, number: int, future: asyncio.Future[dict[str, Any]]) -> None:
        """Have the command of a request ended, and wait until it is gone."""
        with anyio.CancelScope(shield=True), contextlib.suppress(SandboxFault):
            await self._send({"op": "cancel", "target": number})
            with anyio.move_on_after(CANCEL_TIMEOUT_S):
                await asyncio.wait([future])

    # --- the supervisor's life

    async def _keep_running(self) -> None:
        """Read answers; when the supervisor dies, fail what waits and start another.

        Calls wait while the first one that dies before it is ready is replaced. If the next one does too, the
        report says why, and others are tried less and less often.
        """
        pause = RESTART_PAUSE_S
        while True:
            while (supervisor := self._started()) is None:  # noqa: ASYNC110 - nothing tells of one
                await anyio.sleep(pause)
            fault = await self._converse(supervisor)
            logger.error("the sandbox supervisor ended; restarting it")
            self._fail_all(DIED)
            with contextlib.suppress(OSError):  # without a free descriptor it can't be waited for
                await self._stop()
            if fault is None:
                self._ready = anyio.Event()
                pause = RESTART_PAUSE_S
            elif pause > RESTART_PAUSE_S:
                self._settle(SandboxReport(0, missing=(fault,)))
            await anyio.sleep(pause)
            if fault is not None:
                pause = min(pause * 2, LONGEST_PAUSE_S)

    def _started(self) -> Supervisor | None:
        try:
            self.supervisor = self.supervisor or Supervisor(self.policy.path)
        except OSError as error:
            fault = f"the sandbox supervisor could not be started: {error.strerror}"
            logger.error("%s", fault)
            self._settle(SandboxReport(0, missing=(fault,)))
        return self.supervisor

    async def _converse(self, supervisor: Supervisor) -> str | None:
        """Serve until the supervisor ends; return why it never was ready, None if it was."""
        fault: str | None = "the sandbox supervisor died before it was ready"
        with contextlib.suppress(Disconnected):
            await supervisor.wire.send(self.policy.frame(supervisor.temporary))
            while True:
                frame = await supervisor.wire.receive()
                if "ready" in frame:
                    fault = None
                    self._settle(report_of(frame["ready"], lifted=not self.policy.restrict_to_workspace))
                elif "fatal" in frame:
                    logger.error("the sandbox supervisor failed", extra={"error": str(frame["fatal"])})
                    fault = fault and str(frame["fatal"])
                elif (future := self._waiting.get(frame.get("id", 0))) and not future.done():
                    future.set_result(frame)
        return fault

    def _settle(self, report: SandboxReport) -> None:
        self.report = report
        self._ready.set()
        fields = {name: getattr(report, name) for name in LOGGED} | {"missing": list(report.missing)}
        severity = logging.INFO if report.level >= 2 else logging.WARNING
        logger.log(severity, "sandbox ready", extra={"sandbox": fields})
        if self.policy.min_level < 2:
            logger.warning("SANDBOX_MIN_LEVEL=%d: tools run with less than full", self.policy.min_level)
        for warning in report.warnings:
            logger.warning("%s", warning)

    def _fail_all(self, sentence: str) -> None:
        self._files.let_go()
        for future in self._waiting.values():
            if not future.done():
                future.set_result({"error": sentence})

    async def _stop(self) -> None:
        supervisor, self.supervisor = self.supervisor, None
        if supervisor is not None:
            await supervisor.end()


def _places(packages: Sequence[str]) -> list[str]:
    """Return the directories from which Python imports these packages."""
    found = (find_spec(name) for name in packages)
    origins = [Path(spec.origin) for spec in found if spec is not None and spec.origin is not None]
    return [str(at.parent.parent if at.stem == "__init__" else at.parent) for at in origins]

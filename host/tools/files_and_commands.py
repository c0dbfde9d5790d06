"""The six tools that touch files and run commands: results in words, and what a run has changed."""

import hashlib
import logging
import os
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final, Literal

import anyio
import anyio.to_thread

from host.ports import Image, Sandbox, SandboxFault, ToolResult, Workspace
from host.sandbox.guard import Guard
from host.sandbox.policy import SandboxPolicy
from host.sandbox.shell import parse
from host.sandbox.worker.names import READ_ONLY
from host.schemas import SchemaJudge
from host.skills.knowledge import MEMORY_FILE, MEMORY_LIMIT, SHORTEN
from host.tools.arguments import EXEC_SPEC, FILE_SPECS, BadArguments, check
from host.tools.pictures_and_documents import pdf_text
from shared.shapes import Shape

WITHIN_S: Final = 10.0


class FileChangedShape(Shape):
    """A file that a run changed. ``by``: tool, or seen after a command (perhaps another run's work)."""

    path: str
    size: int
    sha256: str | None
    change: Literal["created", "modified", "deleted"]
    by: Literal["tool", "seen"]


class WorkspaceChanges:
    """The changes of one run, from the first time that it may change something."""

    def __init__(self, sandbox: Sandbox, workspace: Workspace) -> None:
        self._sandbox = sandbox
        self._workspace = workspace
        self._written: dict[str, str] = {}
        self.mark: int | None = None
        """An open note of what was there before the first command."""

    def wrote(self, path: str, *, created: bool) -> None:
        """A file tool wrote a file, which is told if it lies in the workspace."""
        if (found := within(self._workspace, path)) is not None:
            self._written.setdefault(found, "created" if created else "modified")

    async def begin(self) -> None:
        """Note what is there before a command; without a note, what it changes isn't told."""
        self.mark = os.memfd_create("mark")
        try:
            await self._sandbox.file(self._workspace, "mark_files", {}, [self.mark])
        except SandboxFault:
            self.forget()

    async def told(self) -> dict[str, Any]:
        """Return ``changes``, and whether there are ``more``; then the note is gone."""
        marks = [] if self.mark is None else [self.mark]
        wanted = {"written": self._written}
        try:
            with anyio.fail_after(WITHIN_S):
                return await self._sandbox.file(self._workspace, "changed_files", wanted, marks)
        except (SandboxFault, TimeoutError):
            return {"changes": [], "more": True}
        finally:
            self.forget()

    def forget(self) -> None:
        """Let go of the note."""
        if self.mark is not None:
            os.close(self.mark)
            self.mark = None


def within(workspace: Workspace, path: str) -> str | None:
    """Return the path from the workspace on that a tool's path is, None if it leads elsewhere."""
    root, whole = os.path.normpath(workspace.root), os.path.normpath(workspace.root / path)
    is_there = whole.startswith(f"{root}/") and not f"{path}/".startswith("~/")
    return whole.removeprefix(f"{root}/") if is_there else None


COMMAND_BYTES: Final = 131_000  # one argument's limit is MAX_ARG_STRLEN, execve(2)
CHANGING: Final = frozenset({"write_file", "edit_file", "append_file"})
LARGEST_COMPARED: Final = 64 << 20
EXEC_TIMEOUT_MAX_MS: Final = 3_600_000
SHORT_LINE: Final = 1024
"""Characters of a command line that the guard reads at once; 32 KiB of nothing but marks take it 0.2 s."""
TOO_SLOW: Final = (
    "Command blocked by safety guard (the operator's patterns take too long for it: make it shorter)"
)
_DENIED: Final = ("Permission denied", "Operation not permitted", "PermissionError")
_REACH: Final = "commands reach the workspace, $TMPDIR, $HOME and system directories only"
_WRITE: Final = "commands write to the workspace, $TMPDIR and $HOME only"
_OPEN: Final = "the host's settings, secrets and store are closed, and other conversations' $TMPDIR and $HOME"
_HINT: Final = "[sandbox: {reach}{network}{instead}]"
_INSTEAD: Final = "; use $TMPDIR instead of /tmp"
_FULL: Final = (
    "[{}: commands may read and delete files there, and write to $TMPDIR only, until there is room]"
)
_LEFT_RUNNING: Final = (
    "[what the command left running was ended with it. To keep it, pass background=true, or do everything "
    "that needs it in the same command]"
)

_guard = lru_cache(2048)(Guard)  # its patterns are compiled once, not for each run

logger = logging.getLogger("picoclaw.tools")


class SandboxToolset:
    """The sandbox's tools for one conversation; nothing in a call can make them another's."""

    def __init__(
        self, sandbox: Sandbox, policy: SandboxPolicy, workspace: Workspace, judge: SchemaJudge | None = None
    ) -> None:
        self._sandbox = sandbox
        self._judge = judge
        if workspace.allowance is not None:
            policy = policy.within(workspace.allowance)
        self._policy = policy
        self._workspace = workspace
        self.has_network = policy.allow_network
        self.changes: WorkspaceChanges | None = None
        """What was changed, once something may have been."""
        self.specs = (*FILE_SPECS, EXEC_SPEC) if policy.exec_enabled else FILE_SPECS

    async def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        """Run a tool. Faults are results; a cancelled call has its command ended before it raises."""
        try:
            spec = next((s for s in self.specs if s.name == name), None)
            if spec is None:
                raise SandboxFault(f"there is no tool named {name}")
            checked = check(arguments, spec.input_schema)
            if name == "exec":
                return await self._exec(checked)
            answer = await self._sandbox.file(self._workspace, name, checked)
            if "descriptor" in answer:
                pages = checked.get("pages", "1-")
                return ToolResult(await pdf_text(self._sandbox, answer["descriptor"], answer["pdf"], pages))
            if "created" in answer:
                self.changes = self.changes or WorkspaceChanges(self._sandbox, self._workspace)
                self.changes.wrote(checked["path"], created=answer["created"])
            return _file_result(answer, self._note(str(checked.get("path")), answer))
        except (SandboxFault, BadArguments) as fault:
            logger.warning("Tool execution failed", extra={"tool": name, "error": str(fault)})
            why = f". {self._policy.read_only_because}" if str(fault).endswith(READ_ONLY) else ""
            return ToolResult(f"{fault}{why}", is_error=True)

    async def base_sha256(self, name: str, arguments: Mapping[str, Any]) -> str | None:
        """See ``SeenFiles``. Of a file above 64 MiB nothing is known."""
        if name not in CHANGING:
            return None
        try:
            found = await self._sandbox.file(
                self._workspace, "open_seen", {"path": str(arguments.get("path"))}
            )
        except SandboxFault as fault:
            return "" if fault.code == "ENOENT" else None
        with open(found["descriptor"], "rb") as file:  # noqa: ASYNC230, PTH123 - it is open already
            if found["size"] > LARGEST_COMPARED:
                return None
            digest = await anyio.to_thread.run_sync(hashlib.file_digest, file, "sha256")
        return digest.hexdigest()

    def _note(self, path: str, answer: Mapping[str, Any]) -> str:
        """Return what is to be said of a file that was written: that MEMORY.md is too long to be read."""
        size, root = answer.get("size"), self._workspace.root
        if not isinstance(size, int) or size <= MEMORY_LIMIT:
            return ""
        if os.path.normpath(root / path) != os.path.normpath(root / MEMORY_FILE):
            return ""
        what = (
            f"{MEMORY_FILE} has {size} bytes now, and only the first and the last {MEMORY_LIMIT // 2} of them"
        )
        return f"\n[host: {what} are shown to you at the beginning of a turn. {SHORTEN}]"

    async def _exec(self, arguments: dict[str, Any]) -> ToolResult:
        action = arguments.pop("action", "run")
        if action != "run":
            return await self._manage(action, arguments.get("job"))
        command = _passable(arguments.get("command"))
        if refusal := await self._refusal(command, arguments.get("cwd")):
            raise SandboxFault(refusal)
        self.changes = self.changes or WorkspaceChanges(self._sandbox, self._workspace)
        if self.changes.mark is None:
            await self.changes.begin()
        if arguments.get("background"):
            answer = await self._sandbox.run(self._workspace, arguments)
            return ToolResult(f"running in the background as job {answer.get('job')}")
        timeout_ms = min(arguments.get("timeout_ms") or self._policy.exec_timeout_ms, EXEC_TIMEOUT_MAX_MS)
        answer = await self._sandbox.run(self._workspace, {**arguments, "timeout_ms": timeout_ms})
        return self._exec_result(answer)

    async def _refusal(self, command: str, cwd: str | None) -> str | None:
        """Ask the guard: of a long line in a thread, and by patterns of the operator's only if they end."""
        patterns = (*self._policy.deny_patterns, *self._policy.allow_patterns)
        guard = _guard(self._policy, self._workspace.root)
        if len(command) <= SHORT_LINE and not patterns:
            return guard.refusal(command, cwd)
        if patterns and self._judge is not None:
            script = await anyio.to_thread.run_sync(parse, command)
            texts = [each.text for each in script.commands] if script.is_whole else [command]
            if not await self._judge.ends(patterns, texts):
                return TOO_SLOW
        return await anyio.to_thread.run_sync(guard.refusal, command, cwd)

    async def _manage(self, action: str, job: int | None) -> ToolResult:
        if action == "list":
            listed = await self._sandbox.jobs(self._workspace, action)
            return ToolResult(_jobs_text(listed.get("jobs")))
        if job is None:
            raise SandboxFault(f"action {action} needs job, the number of a background command")
        return self._exec_result(await self._sandbox.jobs(self._workspace, action, job))

    def _exec_result(self, answer: Mapping[str, Any]) -> ToolResult:
        """Put output and ending into words. Any exit code but 0 is an error for the model."""
        text = str(answer.get("output") or "")
        ended, status = answer.get("ended"), answer.get("status")
        failed = ended is not None and (ended != "exited" or status != 0)
        lines = [text.rstrip("\n")] if text else []
        if failed and any(sign in text for sign in _DENIED):
            lines.append(_hint(self._policy))
            if read_only := ", ".join(self._policy.read_only(self._workspace.trust)):
                lines.append(f"[{read_only}: {READ_ONLY}. {self._policy.read_only_because}]")
        if answer.get("killed"):
            lines.append(_LEFT_RUNNING)
        if answer.get("full"):
            lines.append(_FULL.format(str(answer["full"])[:100]))
        lines.append(_ending(ended, status, answer.get("ms")))
        return ToolResult("\n".join(lines), is_error=failed)


def _hint(policy: SandboxPolicy) -> str:
    network = "" if policy.allow_network else ", and no network"
    if not policy.restrict_to_workspace:
        return _HINT.format(reach=_OPEN, network=network, instead="")
    reach = _WRITE if policy.allow_read_outside_workspace else _REACH
    return _HINT.format(reach=reach, network=network, instead=_INSTEAD)


def _passable(command: str | None) -> str:
    """Return a command that a shell can be given. Raises ``SandboxFault``."""
    if not command:
        raise SandboxFault("command is missing")
    if "\0" in command:
        raise SandboxFault("a command can't contain a NUL byte")
    try:
        size = len(command.encode())
    except UnicodeEncodeError:
        raise SandboxFault("a command can't contain half of a surrogate pair") from None
    if size > COMMAND_BYTES:
        raise SandboxFault(
            f"the command is longer than {COMMAND_BYTES} bytes; write a script file and run it"
        )
    return command


def _file_result(answer: Mapping[str, Any], note: str = "") -> ToolResult:
    text, image = answer.get("text"), answer.get("image")
    if not isinstance(text, str):
        raise SandboxFault("the sandbox gave no valid answer")
    if isinstance(image, dict):
        return ToolResult(text, images=(Image(str(image.get("data")), str(image.get("media_type"))),))
    return ToolResult(text + note)


def _ending(ended: Any, status: Any, ms: Any) -> str:
    if ended is None:
        return "[still running]"
    if ended == "exited" and isinstance(status, int):
        how = f"exit code {status}" if status >= 0 else f"ended by signal {-status}"
        return f"[{how}, {ms} ms]"
    sentences = {
        "timeout": "stopped: time limit reached",
        "memory": "stopped: memory limit reached",
        "processes": "stopped: too many processes",
        "space": "stopped: its temporary files took too much of their disk, and were removed",
        "cancelled": "stopped: cancelled",
        "launcher": "stopped: the sandbox ended",
        "quota": "stopped: it would take more than the workspace may hold",
    }
    return f"[{sentences.get(str(ended), 'stopped')}, {ms} ms]"


def _jobs_text(jobs: Any) -> str:
    if not isinstance(jobs, list) or not jobs:
        return "no background commands"
    return "\n".join(
        f"job {job.get('job')}: {job.get('state')}, {job.get('age_ms')} ms: {job.get('command')}"
        for job in jobs
        if isinstance(job, dict)
    )

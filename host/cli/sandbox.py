"""``picoclaw sandbox`` and ``picoclaw files``: what agents work in, and the files there.

What the sandbox allows is found out by asking it; the files are those of a conversation's workspace.
"""

from __future__ import annotations

import logging
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import anyio
import typer

from host.cli.client import HostClient, Json, asking, at, host_settings
from host.cli.terminal import Told, fail, judged, listing, local_time, shown, tell, whole
from host.ports import Workspace

if TYPE_CHECKING:
    from host.sandbox.policy import SandboxPolicy
    from host.tools.files_and_commands import SandboxToolset

app = typer.Typer(help="The sandbox of files and commands.", no_args_is_help=True)

ASKER: Final = "sandbox-explain"
PROBE_MS: Final = 5000

READ_PROBE: Final = 'p={path}; if [ -d "$p" ]; then ls "$p" > /dev/null; else head -c 1 "$p" > /dev/null; fi'

# Opens for appending, or makes and removes a file in a directory: nothing that is there changes. The
# name is in a variable, so that the kernel answers and not the guard.
WRITE_PROBE: Final = (
    'p={path}; if [ -d "$p" ]; then t=$(mktemp -p "$p") && rm "$t"; '
    'elif [ -e "$p" ]; then : >> "$p"; else d=$(dirname "$p"); t=$(mktemp -p "$d") && rm "$t"; fi'
)


@dataclass(frozen=True, slots=True)
class Answer:
    """Whether something is allowed, and in which words the sandbox said so."""

    what: str
    allowed: bool
    why: str


@app.callback()
def sandbox() -> None:
    """Explain the sandbox of files and commands."""


@app.command()
def explain(
    subject: Annotated[str, typer.Argument(help="A path, or a command line in quotes.")] = ".",
    json: Json = False,
) -> None:
    """Say what would be allowed, and why. A command is not run; a path is tried, and left as it is."""
    with quiet():
        answers = _ask(subject)
    lines = [judged("ok" if each.allowed else "fault", each.what, each.why) for each in answers]
    tell(list(map(asdict, answers)), "\n".join(lines), json=json)


@contextmanager
def quiet() -> Iterator[None]:
    """Leave out what tools log about refusals: here they are the answers."""
    logging.disable()
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _ask(subject: str) -> list[Answer]:
    from host.sandbox.policy import sandbox_policy
    from host.skills.catalogue import closed_to_agents

    settings = host_settings()
    policy = sandbox_policy(settings, closed_to_agents(settings))
    if not os.path.isdir(policy.workspace):
        fail(f"The workspace {policy.workspace} is not there yet; `picoclaw init` makes it.")
    return anyio.run(_answers, policy, subject)


async def _answers(policy: SandboxPolicy, subject: str) -> list[Answer]:
    from host.ports import Trust
    from host.sandbox.client import Sandbox
    from host.tools.files_and_commands import SandboxToolset

    async with Sandbox(policy) as sandbox:
        report = await sandbox.ready()
        enough = report.level >= policy.min_level
        missing = f"; missing: {', '.join(report.missing)}" if report.missing else ""
        found = [Answer("sandbox", enough, f"level {report.level}{missing}")]
        if _is_path(subject, policy.workspace):
            tools = SandboxToolset(sandbox, policy, Workspace(ASKER, sandbox.root, Trust.MAIN))
            return [
                *found,
                await _reading(tools, subject),
                await _probing(tools, "commands read", READ_PROBE, subject),
                await _probing(tools, "write", WRITE_PROBE, subject),
            ]
        return [*found, *_running(policy, subject)]


async def _reading(tools: SandboxToolset, path: str) -> Answer:
    listed = await tools.call("list_dir", {"path": path, "limit": 1})
    result = listed if not listed.is_error else await tools.call("read_file", {"path": path, "limit": 1})
    return Answer("file tools read", not result.is_error, result.text if result.is_error else "allowed")


async def _probing(tools: SandboxToolset, what: str, probe: str, path: str) -> Answer:
    """Run a probe as a command of the agent's: what the kernel does with it is the answer."""
    home, _, below = path.partition("/")
    quoted = f"~/{shlex.quote(below)}" if home == "~" else shlex.quote(path)
    result = await tools.call("exec", {"command": probe.format(path=quoted), "timeout_ms": PROBE_MS})
    if not result.is_error:
        return Answer(what, allowed=True, why="the kernel allows it")
    first = result.text.splitlines()[0] if result.text else "no answer"
    return Answer(what, allowed=False, why=first.rsplit(": ", 1)[-1])


def _running(policy: SandboxPolicy, line: str) -> list[Answer]:
    from host.sandbox.guard import Guard

    refusal = Guard(policy, policy.workspace).refusal(line)
    if not policy.exec_enabled:
        refusal = "tools.exec.enabled is false"
    passed = "the guard lets it; what it may touch is the kernel's to say"
    network = f"tools.exec.allow_network is {str(policy.allow_network).lower()}"
    return [
        Answer("run", refusal is None, refusal or passed),
        Answer("network", policy.allow_network, network),
    ]


def _is_path(subject: str, workspace: Path) -> bool:
    """Return whether a path is meant: it is there, or it is one word that looks like one."""
    looks = subject.startswith(("/", "~", ".")) and len(subject.split()) == 1
    return looks or (subject != "" and os.path.exists(workspace / subject))


files_app = typer.Typer(help="The files of a conversation on a running host.", no_args_is_help=True)

Remote = Annotated[str, typer.Argument(help="Path in the workspace.")]
Of = Annotated[str, typer.Option("--conversation", help="Whose workspace.")]


@files_app.command("ls")
@asking
def list_files(
    client: HostClient,
    prefix: Annotated[str, typer.Argument(help="Only paths that begin so, such as data/.")] = "",
    conversation: Of = "main",
) -> Told:
    """List files."""
    files = list(client.pages(_address(conversation), "files", prefix=prefix))
    return listing(
        files,
        "No files.",
        {
            "path": "path",
            "size": lambda file: f"{file['size']:,}" if file["type"] == "file" else file["type"],
            "changed": lambda file: local_time(file["modified_at"]),
        },
    )


@files_app.command()
@asking
def get(
    client: HostClient,
    path: Remote,
    local: Annotated[
        Path | None, typer.Argument(help="Where to write it, - for standard output; here under its name.")
    ] = None,
    conversation: Of = "main",
) -> Told:
    """Fetch a file."""
    pieces = client.fetch(_address(conversation, path))
    if str(local) == "-":
        sys.stdout.buffer.writelines(pieces)
        raise typer.Exit
    target = local or Path(path).name
    target = Path(target, Path(path).name) if Path(target).is_dir() else Path(target)
    try:
        with whole(target) as part, part.open("xb") as file:
            file.writelines(pieces)
    except OSError as error:
        fail(f"{target} can't be written: {error.strerror}")
    return Told({"path": path, "file": str(target)}, f"Wrote {shown(str(target))}.")


@files_app.command()
@asking
def put(
    client: HostClient,
    local: Annotated[Path, typer.Argument(help="The file to send.", exists=True, dir_okay=False)],
    path: Annotated[str | None, typer.Argument(help="Path in the workspace; its name if left out.")] = None,
    conversation: Of = "main",
) -> Told:
    """Send a file; one that is there is replaced."""
    name = local.name if path is None else f"{path}{local.name}" if path.endswith("/") else path
    with local.open("rb") as file:
        stored = client.send(_address(conversation, name), file)
    return Told(stored, f"Stored {shown(stored['path'])} ({stored['size']:,} bytes).")


@files_app.command("rm")
@asking
def remove(
    client: HostClient,
    path: Remote,
    recursive: Annotated[
        bool, typer.Option("--recursive", "-r", help="Also a directory that is full.")
    ] = False,
    conversation: Of = "main",
) -> Told:
    """Delete a file, or an empty directory."""
    params = {"recursive": "true"} if recursive else None
    client.request("DELETE", _address(conversation, path), params=params)
    return Told({"path": path, "deleted": True}, f"Deleted {shown(path)}.")


def _address(conversation: str, path: str | None = None) -> str:
    return at("chat", conversation, "files", *([] if path is None else path.split("/")))

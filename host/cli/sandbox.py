"""``picoclaw sandbox``: what the agents' sandbox allows, found out by asking it."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import anyio
import typer

from host.cli.client import Json, host_settings
from host.cli.terminal import fail, judged, tell
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
    if not policy.workspace.is_dir():
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
    quoted = path if path.startswith("~") else shlex.quote(path)
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
    """Return whether one word is meant as a path: it looks like one, or is there in the workspace."""
    if len(subject.split()) != 1:
        return False
    return subject.startswith(("/", "~", ".")) or (workspace / subject).exists()

"""Ways into a sandbox that only tests need."""

from __future__ import annotations

from host.ports import SandboxFault, Trust, Workspace
from host.sandbox.client import Sandbox
from host.tools.files_and_commands import SandboxToolset


def toolset(sandbox: Sandbox, conversation: str, *, trust: Trust = Trust.MAIN) -> SandboxToolset:
    return SandboxToolset(sandbox, sandbox.policy, Workspace(conversation, sandbox.root, trust))


async def private_directory(sandbox: Sandbox, conversation: str) -> str:
    """Return a conversation's TMPDIR."""
    said = (await toolset(sandbox, conversation).call("exec", {"command": "echo $TMPDIR"})).text
    return said.splitlines()[0]


async def read_text(sandbox: Sandbox, path: str, limit: int) -> str | None:
    """Read as the host itself does."""
    try:
        answer = await sandbox.file(
            Workspace("host", sandbox.root), "read_text", {"path": path, "limit": limit}
        )
    except SandboxFault:
        return None
    return str(answer["text"])

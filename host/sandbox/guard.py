"""The guard: refuses what is certainly meant to do harm, with a sentence, before the kernel does."""

from __future__ import annotations

from pathlib import Path

from host.sandbox.policy import SandboxPolicy


class Guard:
    def __init__(self, policy: SandboxPolicy, workspace: Path) -> None:
        self._policy = policy
        self._workspace = workspace

    async def refusal(self, command: str, cwd: str | None) -> str | None:
        """Return the refusal's text, or None."""
        return None

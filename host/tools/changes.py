"""What a run has changed in its workspace: what its file tools wrote, and what commands may have changed."""

from __future__ import annotations

import os
from typing import Any, Final, Literal

import anyio

from host.ports import Sandbox, SandboxFault, Workspace
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
        root = os.path.normpath(self._workspace.root)
        whole = os.path.normpath(self._workspace.root / path)
        if whole.startswith(f"{root}/") and not path.startswith("~"):
            self._written.setdefault(whole.removeprefix(f"{root}/"), "created" if created else "modified")

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

"""What the host's routes for files may change in a conversation's workspace."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from host.ports import SandboxFault, Trust, Workspace
from host.sandbox.client import Sandbox
from host.sandbox.worker.files.paths import RootPath, Roots
from host.sandbox.worker.files.transfer import list_files

OBEYED = ("CLAUDE.md", "AGENTS.md", "AGENT.md", "MEMORY.md", "skills/x/SKILL.md", ".claude/x", "claude.md")


async def refusal(sandbox: Sandbox, workspace: Workspace, op: str, **arguments: Any) -> str:
    with pytest.raises(SandboxFault) as raised:
        await sandbox.file(workspace, op, arguments)
    return raised.value.code


async def stored(sandbox: Sandbox, workspace: Workspace, path: str, content: bytes) -> None:
    begun = await sandbox.file(workspace, "begin_upload", {"path": path})
    os.write(begun["descriptor"], content)
    wanted = {"path": path, "temporary": begun["temporary"], "begun": begun["begun"]}
    await sandbox.file(workspace, "commit_upload", wanted, [begun["descriptor"]])
    os.close(begun["descriptor"])


async def test_an_untrusted_conversation_changes_nothing_that_is_obeyed(sandbox: Sandbox, ws: Path) -> None:
    theirs = Workspace("conv-theirs", ws)
    (ws / "skills").mkdir()
    (ws / "CLAUDE.md").write_text("be kind")
    (ws / "alias").symlink_to("CLAUDE.md")
    await stored(sandbox, theirs, "mine", b"x")
    for path in (*OBEYED, "alias", "HEARTBEAT.md"):
        with pytest.raises(SandboxFault) as raised:
            await stored(sandbox, theirs, path, b"y")
        assert raised.value.code == "read_only", path
        moved = await refusal(sandbox, theirs, "move_path", path="mine", target=path)
        assert moved in ("read_only@move_to", "EEXIST@move_to"), path
    for path in ("CLAUDE.md", "skills"):
        assert await refusal(sandbox, theirs, "delete_path", path=path, recursive=True) == "read_only"
        assert await refusal(sandbox, theirs, "move_path", path=path, target="y") == "read_only"
    assert (ws / "CLAUDE.md").read_text() == "be kind"
    trusted = Workspace("conv-trusted", ws, Trust.TRUSTED)
    await stored(sandbox, trusted, "CLAUDE.md", b"be kinder")
    assert (ws / "CLAUDE.md").read_text() == "be kinder"
    with pytest.raises(SandboxFault) as raised:
        await stored(sandbox, trusted, "HEARTBEAT.md", b"y")
    assert raised.value.code == "read_only"
    await stored(sandbox, Workspace("main", ws, Trust.MAIN), "HEARTBEAT.md", b"y")


def test_a_list_goes_on_behind_the_path_it_is_told_and_leaves_uploads_out(tmp_path: Path) -> None:
    everything = ["a", "b", "b/c", "b/d", "e"]
    hidden = [f".picoclaw-{number:016x}" for number in range(9)]
    (tmp_path / "b").mkdir()
    for name in (*hidden[:5], "a", "b/c", "b/d", "e", *hidden[5:]):
        (tmp_path / name).write_text("x")

    def listed(**arguments: Any) -> list[str]:
        wanted = {"prefix": "", "after": "", "limit": 10, **arguments}
        found: list[dict[str, Any]] = list_files(Roots([RootPath(str(tmp_path), True)]), wanted)["files"]
        return [each["path"] for each in found]

    assert listed() == everything
    for number, path in enumerate(everything):
        assert listed(after=path) == everything[number + 1 :]
    assert listed(prefix="b/") == ["b/c", "b/d"]
    assert listed(prefix="b/", after="b/c") == ["b/d"]


async def test_what_an_upload_has_left_goes_with_the_next_worker_and_nothing_else(
    sandbox: Sandbox, ws: Path
) -> None:
    for name in (".picoclaw-0123456789abcdef", ".picoclaw-notes", ".hidden"):
        (ws / name).write_text("x")
    await sandbox.file(Workspace("conv-new", ws), "list_files", {"prefix": "", "after": "", "limit": 10})
    assert sorted(path.name for path in ws.iterdir() if path.name.startswith(".")) == [
        ".hidden",
        ".picoclaw-notes",
    ]

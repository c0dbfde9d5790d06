"""What a run changed in its workspace is told, file by file, and nothing else."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from host.sandbox.worker.files import changes as looking
from host.tools.files_and_commands import SandboxToolset


async def told(tools: SandboxToolset) -> dict[str, tuple[str, str]]:
    assert tools.changes is not None
    found = await tools.changes.told()
    assert not found["more"]
    return {each["path"]: (each["change"], each["by"]) for each in found["changes"]}


async def run(tools: SandboxToolset, command: str) -> None:
    result = await tools.call("exec", {"command": command})
    assert not result.is_error, result.text


async def test_what_tools_wrote_and_commands_changed_is_told(place: Path, tools: SandboxToolset) -> None:
    await tools.call("write_file", {"path": "new.txt", "content": "one"})
    await tools.call("append_file", {"path": str(place / "ws/ok.txt"), "content": "more"})
    await tools.call("write_file", {"path": "~/own.txt", "content": "x"})
    await tools.call("write_file", {"path": "passing.txt", "content": "x"})
    await run(
        tools,
        "mkdir -p deep/er && echo hi > deep/er/made.txt && rm sub/inner.txt passing.txt && echo b > both.txt "
        "&& mkdir .git conversations deep/.git && touch .git/x conversations/x deep/.git/x && rm both.txt",
    )
    await tools.call("edit_file", {"path": "new.txt", "old_text": "one", "new_text": "two"})
    assert tools.changes is not None
    found = await tools.changes.told()
    assert found == {
        "changes": [
            change("deep/er/made.txt", b"hi\n", "created", "seen"),
            change("new.txt", b"two", "created", "tool"),
            change("ok.txt", b"fine\nmore", "modified", "tool"),
            {"path": "sub/inner.txt", "size": 0, "sha256": None, "change": "deleted", "by": "seen"},
        ],
        "more": False,
    }


def change(path: str, content: bytes, change: str, by: str) -> dict[str, Any]:
    digest = hashlib.sha256(content).hexdigest()
    return {"path": path, "size": len(content), "sha256": digest, "change": change, "by": by}


async def test_a_file_that_is_replaced_or_touched_by_a_command_is_modified(
    place: Path, tools: SandboxToolset
) -> None:
    await run(
        tools, "cp ok.txt x && mv x ok.txt && ln -s ok.txt link && mkfifo pipe && chmod 700 sub/inner.txt"
    )
    assert await told(tools) == {"ok.txt": ("modified", "seen")}


async def test_what_may_not_be_read_any_more_is_not_deleted(place: Path, tools: SandboxToolset) -> None:
    await tools.call("write_file", {"path": "new.txt", "content": "one"})
    await tools.call("append_file", {"path": "ok.txt", "content": "more"})
    await run(tools, "chmod 000 new.txt ok.txt sub")
    assert tools.changes is not None
    found = (await tools.changes.told())["changes"]
    (place / "ws/sub").chmod(0o755)
    unread = {"sha256": None, "by": "tool"}
    assert found == [
        {"path": "new.txt", "size": 3, "change": "created", **unread},
        {"path": "ok.txt", "size": 9, "change": "modified", **unread},
    ]


async def test_nothing_is_asked_of_the_sandbox_where_nothing_can_have_changed(tools: SandboxToolset) -> None:
    await tools.call("read_file", {"path": "ok.txt"})
    await tools.call("list_dir", {})
    assert tools.changes is None


async def test_more_than_can_be_told_says_so(place: Path, tools: SandboxToolset) -> None:
    await run(tools, "for i in $(seq 250); do echo $i > many-$i; done")
    assert tools.changes is not None
    found = await tools.changes.told()
    assert (len(found["changes"]), found["more"]) == (looking.MOST, True)


async def test_a_name_that_no_address_can_say_is_left_out(place: Path, tools: SandboxToolset) -> None:
    await run(tools, r"echo x > $'bad\xff' && echo x > $'line\nend' && echo x > 'é ü'")
    assert await told(tools) == {"line\nend": ("created", "seen"), "é ü": ("created", "seen")}


def test_a_look_that_was_cut_is_compared_as_far_as_both_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c", "d"):
        (tmp_path / name).write_text("x")
    descriptor = os.open(tmp_path, os.O_RDONLY)
    monkeypatch.setattr(looking, "MOST_NAMES", 2)
    look = looking._Look(descriptor)
    assert (sorted(look.files), look.end) == (["a", "b"], "c")
    os.close(descriptor)

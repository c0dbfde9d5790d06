"""The kernel tells that nothing changed: then nobody is asked, and whatever does change is seen at once."""

from __future__ import annotations

import mmap
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import anyio
import pytest

from host.skills import watch
from host.skills.knowledge import Knowledge
from tests.http.test_prompt import add_skill
from tests.skills.test_knowledge import Door, knowing

pytestmark = pytest.mark.skipif(not hasattr(watch._libc, "inotify_init1"), reason="needs inotify")


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    (tmp_path / "ws").mkdir()
    (tmp_path / "ws" / "CLAUDE.md").write_text("be kind")
    return tmp_path / "ws"


async def quiet(knowledge: Knowledge, door: Door) -> None:
    """Look until a look asks nobody."""
    with anyio.fail_after(60):
        while True:
            asked = door.asked
            await knowledge.look()
            if door.asked == asked:
                return


async def test_nobody_is_asked_while_nothing_changes(workspace: Path) -> None:
    door = Door(workspace)
    knowledge = knowing(door, workspace)
    await quiet(knowledge, door)
    known, asked = await knowledge.look(), door.asked
    for _ in range(20):
        assert await knowledge.look() is known
    assert door.asked == asked


def _write(ws: Path) -> None:
    (ws / "CLAUDE.md").write_text("be quick")


def _append(ws: Path) -> None:
    with (ws / "CLAUDE.md").open("a") as file:
        file.write(" and quick")


def _in_place(ws: Path) -> None:
    with (ws / "CLAUDE.md").open("r+b") as file:
        file.write(b"be cool")


def _replace(ws: Path) -> None:
    (ws / "new").write_text("be quick")
    (ws / "new").rename(ws / "CLAUDE.md")


def _remove(ws: Path) -> None:
    (ws / "CLAUDE.md").unlink()


def _remember(ws: Path) -> None:
    (ws / "MEMORY.md").write_text("the sky is blue")


def _close(ws: Path) -> None:
    (ws / "CLAUDE.md").chmod(0o644 if (ws / "CLAUDE.md").stat().st_mode & 0o777 == 0o600 else 0o600)


def _learn(ws: Path) -> None:
    add_skill(ws / "skills", "song", "sings")


def _learn_slowly(ws: Path) -> None:
    folder = ws / "skills" / "song"
    folder.mkdir(parents=True)
    (ws / "prepared").write_text("---\nname: song\ndescription: sings\n---\n")
    (ws / "prepared").rename(folder / "SKILL.md")


def _another_workspace(ws: Path) -> None:
    ws.rename(ws.with_name("away"))
    shutil.copytree(ws.with_name("away"), ws)
    (ws / "CLAUDE.md").write_text("be another")


CHANGES = (
    _write,
    _append,
    _in_place,
    _replace,
    _remove,
    _remember,
    _close,
    _learn,
    _learn_slowly,
    _another_workspace,
)


@pytest.mark.parametrize("change", CHANGES)
async def test_a_change_is_seen_at_the_next_look(workspace: Path, change: Callable[[Path], None]) -> None:
    door = Door(workspace)
    knowledge = knowing(door, workspace)
    await quiet(knowledge, door)
    asked = door.asked
    change(workspace)
    seen = await knowledge.look()
    assert door.asked > asked
    assert seen == await knowing(Door(workspace), workspace).look()


async def test_every_one_of_many_changes_is_seen(workspace: Path) -> None:
    door = Door(workspace)
    knowledge = knowing(door, workspace)
    for number in range(100):
        (workspace / "CLAUDE.md").write_text(f"rule {number}")
        known = await knowledge.look()
        assert known.user is not None
        assert known.user.text == f"rule {number}"
        await knowledge.look()


async def test_what_a_link_leads_to_is_looked_at_every_time(workspace: Path) -> None:
    (workspace / "notes").mkdir()
    (workspace / "notes" / "memory").write_text("old")
    (workspace / "MEMORY.md").symlink_to("notes/memory")
    door = Door(workspace)
    knowledge = knowing(door, workspace)
    await knowledge.look()
    (workspace / "notes" / "memory").write_text("new")
    known = await knowledge.look()
    assert known.memory is not None
    assert known.memory.text == "new"


async def test_skills_of_agents_are_looked_at_every_time(workspace: Path) -> None:
    add_skill(workspace / "skills", "song", "sings")
    door = Door(workspace)
    knowledge = knowing(door, workspace)
    await knowledge.look()
    (workspace / "skills" / "song" / "SKILL.md").write_text("---\nname: song\ndescription: hums\n---\n")
    known = await knowledge.look()
    assert known.skills.effective["song"].description == "hums"


@pytest.mark.parametrize("linked", [False, True])
async def test_the_operators_skills_are_followed(workspace: Path, tmp_path: Path, linked: bool) -> None:
    shelf = tmp_path / "built_in"
    add_skill(tmp_path / "elsewhere" if linked else shelf, "song", "sings")
    if linked:
        shelf.mkdir()
        (shelf / "song").symlink_to(tmp_path / "elsewhere" / "song")
    knowledge = knowing(Door(workspace), workspace, built_in=shelf)
    for number in range(5):
        text = f"---\nname: song\ndescription: sings {number}\n---\n"
        (shelf / "song" / "SKILL.md").write_text(text)
        known = await knowledge.look()
        described = known.skills.effective["song"].description if "song" in known.skills.effective else ""
        assert described == ("" if linked else f"sings {number}")
        await knowledge.look()


async def test_a_look_never_takes_anothers_that_began_before_the_change(workspace: Path) -> None:
    door = Door(workspace)
    read, go_on = anyio.Event(), anyio.Event()

    async def slow(asked: Mapping[str, Any]) -> Mapping[str, Any]:
        answer = await door(asked)
        if not go_on.is_set() and read.is_set() is False:
            read.set()
            await go_on.wait()
        return answer

    knowledge = knowing(slow, workspace)
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(knowledge.look)
            await read.wait()
            _write(workspace)
            second = await knowledge.look()
            assert second.user is not None
            assert second.user.text == "be quick"
            go_on.set()
        last = await knowledge.look()
    assert last.user is not None
    assert last.user.text == "be quick"


async def test_on_file_systems_that_others_change_everybody_is_asked(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "_LOCAL", frozenset())
    door = Door(workspace)
    knowledge = knowing(door, workspace)
    for number in range(1, 6):
        await knowledge.look()
        assert door.asked == number


async def test_a_write_through_a_memory_map_is_seen_soon(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "SURE_S", 0.05)
    door = Door(workspace)
    knowledge = knowing(door, workspace)
    await quiet(knowledge, door)
    with (workspace / "CLAUDE.md").open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[:7] = b"be cool"
        mapped.flush()
        with anyio.fail_after(60):
            while True:
                known = await knowledge.look()
                if known.user is not None and known.user.text == "be cool":
                    return
                await anyio.sleep(0.01)


async def test_watches_are_given_back(workspace: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        await knowing(Door(workspace), workspace).look()
    assert len(os.listdir("/proc/self/fd")) <= before + 4  # of the last one, until it is collected

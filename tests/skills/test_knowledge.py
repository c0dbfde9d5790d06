"""What the agent knows: fresh at every look, the same object while nothing changes, and safe from rubbish."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from host.ports import SandboxFault
from host.runs.prompt import Prompt
from host.sandbox.worker.files import directories
from host.skills.knowledge import Knowledge, Known, directly
from tests.http.test_prompt import add_skill


class Door:
    """The workspace by the same code as behind the sandbox's door; it can be closed."""

    def __init__(self, workspace: Path) -> None:
        self.look = directly(workspace, hard_links=False)
        self.closed = False
        self.asked = 0
        self.answered_whole = 0

    async def __call__(self, asked: Mapping[str, Any]) -> Mapping[str, Any]:
        self.asked += 1
        if self.closed:
            raise SandboxFault("the sandbox is restarting; try again")
        answer = await self.look(asked)
        self.answered_whole += "texts" in answer
        return answer


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(directories, "SETTLED_NS", 50_000_000)
    (tmp_path / "ws").mkdir()
    return tmp_path / "ws"


def knowing(door: Any, workspace: Path, **places: Path) -> Knowledge:
    return Knowledge(
        door,
        workspace_dir=workspace,
        built_in_dir=places.get("built_in", workspace.parent / "none"),
        org_dir=places.get("org"),
        skills_dir=places.get("users", workspace.parent / "none"),
    )


async def settled(knowledge: Knowledge, door: Door) -> Known:
    """Look until nothing is read any more."""
    with anyio.fail_after(60):
        while True:
            before = door.answered_whole
            known = await knowledge.look()
            if door.answered_whole == before:
                return known
            await anyio.sleep(0.01)


async def test_nothing_is_read_and_nothing_made_while_nothing_changes(workspace: Path) -> None:
    (workspace / "CLAUDE.md").write_text("be kind")
    add_skill(workspace / "skills", "song", "sings")
    door = Door(workspace)
    knowledge, prompt = knowing(door, workspace), Prompt("Pico", None)
    known = await settled(knowledge, door)
    blocks, asked = prompt.blocks(known), door.asked
    for _ in range(10):
        assert await knowledge.look() is known
        assert prompt.blocks(known) is blocks
    assert door.asked == asked + 10


async def test_what_is_known_stays_while_the_sandbox_is_away(workspace: Path) -> None:
    (workspace / "CLAUDE.md").write_text("be kind")
    add_skill(workspace / "skills", "song", "sings")
    door = Door(workspace)
    knowledge = knowing(door, workspace)
    known = await knowledge.look()
    (workspace / "CLAUDE.md").write_text("be quick")
    door.closed = True
    assert await knowledge.look() is known
    assert await knowledge.reload() is known
    assert await knowledge.instructions(known.skills.effective["song"]) is None
    door.closed = False
    after = await knowledge.look()
    assert after.user is not None
    assert after.user.text == "be quick"


async def test_a_text_that_is_there_and_cannot_be_read_is_told(workspace: Path) -> None:
    org, elsewhere = workspace.parent / "org", workspace.parent / "elsewhere.md"
    (org / "CLAUDE.md").mkdir(parents=True)
    elsewhere.write_text("be rude")
    (workspace / "CLAUDE.md").symlink_to(elsewhere)
    (workspace / "AGENTS.md").write_text("be kind")
    knowledge = knowing(Door(workspace), workspace, org=org)
    known = await knowledge.look()
    assert (known.organisation, known.user) == (None, None)
    told = {problem.path: problem.problem for problem in known.skills.problems}
    assert list(told) == [str(org / "CLAUDE.md"), "CLAUDE.md"]
    assert all(said.startswith("not read: ") for said in told.values())
    (org / "CLAUDE.md").rmdir()
    (workspace / "CLAUDE.md").unlink()
    known = await knowledge.look()
    assert (known.skills.problems, known.user and known.user.text) == ((), "be kind")


async def test_looks_side_by_side_all_see_what_was_there_when_they_began(workspace: Path) -> None:
    door = Door(workspace)
    knowledge = knowing(door, workspace)
    seen: list[str] = []

    async def look(number: int) -> None:
        known = await knowledge.look()
        seen.append(next(iter(known.skills.effective)) if known.skills.effective else f"none for {number}")

    for number in range(20):
        folder = add_skill(workspace / "skills", f"s{number:02}", "does it")
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(look, number)
        assert seen[-5:] == [f"s{number:02}"] * 5
        (folder / "SKILL.md").unlink()
        folder.rmdir()


async def test_a_users_directory_inside_the_workspace_is_looked_at_through_the_door(workspace: Path) -> None:
    (workspace.parent / "secret").mkdir()
    add_skill(workspace.parent / "secret", "stolen", "TOP SECRET")
    add_skill(workspace / "more", "song", "sings")
    (workspace / "more" / "stolen").symlink_to(workspace.parent / "secret" / "stolen")
    door = Door(workspace)
    knowledge = knowing(door, workspace, users=workspace / "more")
    known = await knowledge.look()
    assert door.asked == 2
    assert [(skill.name, skill.path) for skill in known.skills.effective.values()] == [("song", "more/song")]
    text = await knowledge.instructions(known.skills.effective["song"])
    assert text is not None
    assert text.text.strip() == "Do it."
    assert "TOP SECRET" not in str(known)


async def test_the_operator_s_directories_may_be_links_and_hard_links_but_lead_nowhere_else(
    workspace: Path, tmp_path: Path
) -> None:
    mounted = tmp_path / "org"
    add_skill(mounted / "..data" / "skills", "policy", "the policy")
    (mounted / "skills").symlink_to("..data/skills")
    (mounted / "CLAUDE.md").symlink_to("..data/CLAUDE.md")
    (mounted / "..data" / "CLAUDE.md").write_text("the rules")
    os.link(mounted / "..data" / "skills" / "policy" / "SKILL.md", tmp_path / "cached")
    knowledge = knowing(Door(workspace), workspace, org=mounted)
    known = await knowledge.look()
    assert known.organisation is not None
    assert known.organisation.text == "the rules"
    assert list(known.skills.effective) == ["policy"]


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=5)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)
PARTS = st.fixed_dictionaries(
    {},
    optional={
        "stamp": JSON,
        "more": JSON,
        "texts": st.one_of(JSON, st.lists(st.fixed_dictionaries({}, optional={"text": JSON, "name": JSON}))),
        "skills": st.one_of(
            JSON,
            st.lists(
                st.fixed_dictionaries(
                    {}, optional={"folder": JSON, "text": JSON, "size": JSON, "fault": JSON, "missing": JSON}
                ),
                max_size=3,
            ),
        ),
    },
)


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(answer=PARTS)
def test_rubbish_out_of_the_sandbox_is_no_knowledge_and_no_fault(workspace: Path, answer: Any) -> None:
    async def door(asked: Mapping[str, Any]) -> Mapping[str, Any]:
        return dict(answer)

    async def look() -> None:
        knowledge = knowing(door, workspace)
        known = await knowledge.look()
        assert known.skills.effective == {}
        assert Prompt("Pico", None).blocks(known)
        await knowledge.reload()

    anyio.run(look)

"""What the host learns of a workspace at the beginning of a turn: stamps, texts, skills, never a way out."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from host.ports import Workspace
from host.sandbox.client import Sandbox
from host.sandbox.policy import SandboxPolicy
from host.sandbox.worker.files import directories
from host.sandbox.worker.files.paths import RootPath, Roots
from host.tools.files_and_commands import SandboxToolset
from shared.errors import Misconfigured
from tests.sandbox.opened import toolset

TEXTS = [{"names": ["CLAUDE.md", "AGENTS.md"], "limit": 100}]


def asked(known: str = "", *, most: int = 10) -> dict[str, Any]:
    return {"known": known, "texts": TEXTS, "skills": "skills", "limit": 50, "most": most}


def look(ws: Path, known: str = "", *, most: int = 10, hard_links: bool = False) -> dict[str, Any]:
    with Roots([RootPath(str(ws), False, hard_links=hard_links)]) as roots:
        return directories.survey(roots, asked(known, most=most))


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stamps of a local file system tell changes apart after a clock tick; two seconds are for others."""
    monkeypatch.setattr(directories, "SETTLED_NS", 50_000_000)


def settle(ws: Path) -> None:
    """Wait until the youngest change is old enough for its time stamp to tell it from the next one."""
    youngest = max(os.lstat(path).st_ctime_ns for path in [ws, *ws.rglob("*")])
    while time.time_ns() - directories.SETTLED_NS <= youngest:
        time.sleep(0.01)


def add_skill(ws: Path, name: str, text: str = "---\n") -> Path:
    folder = ws / "skills" / name
    folder.mkdir(parents=True)
    (folder / "SKILL.md").write_text(text)
    return folder


def test_the_first_name_that_exists_is_read(ws: Path) -> None:
    assert look(ws)["texts"] == [None]
    (ws / "AGENTS.md").write_text("agents")
    assert look(ws)["texts"] == [{"name": "AGENTS.md", "text": "agents", "size": 6}]
    (ws / "CLAUDE.md").write_text("claude")
    assert look(ws)["texts"] == [{"name": "CLAUDE.md", "text": "claude", "size": 6}]


def test_a_known_stamp_saves_the_content_and_any_change_gives_another(ws: Path) -> None:
    (ws / "CLAUDE.md").write_text("one")
    folder = add_skill(ws, "a")
    settle(ws)
    stamp = look(ws)["stamp"]
    assert stamp
    assert look(ws, stamp) == {"stamp": stamp}
    seen = {stamp}
    changes: list[Callable[[], object]] = [
        lambda: (ws / "CLAUDE.md").write_text("two"),
        lambda: (folder / "SKILL.md").write_text("+++\n"),
        lambda: add_skill(ws, "b"),
        lambda: (folder / "SKILL.md").unlink(),
        lambda: (ws / "CLAUDE.md").unlink(),
    ]
    for change in changes:
        change()
        assert "texts" in look(ws, stamp)
        settle(ws)
        stamp = look(ws)["stamp"]
        assert stamp not in seen
        seen.add(stamp)


def test_a_change_with_the_old_modification_time_is_seen(ws: Path) -> None:
    (ws / "CLAUDE.md").write_text("one")
    settle(ws)
    stamp, status = look(ws)["stamp"], (ws / "CLAUDE.md").stat()
    (ws / "CLAUDE.md").write_text("two")
    os.utime(ws / "CLAUDE.md", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert look(ws, stamp)["texts"] == [{"name": "CLAUDE.md", "text": "two", "size": 3}]


def test_what_has_just_changed_has_no_stamp_yet(ws: Path) -> None:
    (ws / "CLAUDE.md").write_text("one")
    assert look(ws)["stamp"] == ""
    assert look(ws, "")["texts"]


def test_links_bring_nothing_in_from_outside(ws: Path, place: Path) -> None:
    (ws / "CLAUDE.md").symlink_to(place / "outside" / "secret.txt")
    skills = ws / "skills"
    skills.mkdir()
    (skills / "away").symlink_to(place / "outside")
    (skills / "dangling").symlink_to("nowhere")
    add_skill(ws, "inner")
    (skills / "inner" / "SKILL.md").unlink()
    (skills / "inner" / "SKILL.md").symlink_to("/proc/self/environ")
    found = look(ws)
    assert "outside the workspace" in found["texts"][0]["fault"]
    assert [skill["folder"] for skill in found["skills"]] == ["away", "dangling", "inner"]
    assert all("text" not in skill for skill in found["skills"])
    assert found["skills"][1]["missing"]


def test_a_link_that_stays_inside_is_followed(ws: Path) -> None:
    (ws / "AGENTS.md").write_text("shared")
    (ws / "CLAUDE.md").symlink_to("AGENTS.md")
    assert look(ws)["texts"] == [{"name": "CLAUDE.md", "text": "shared", "size": 6}]


def test_a_pipe_a_directory_and_a_hard_link_are_named_not_read(ws: Path) -> None:
    os.mkfifo(ws / "CLAUDE.md")
    folder = add_skill(ws, "a")
    (folder / "SKILL.md").unlink()
    (folder / "SKILL.md").mkdir()
    hard = add_skill(ws, "b", "hard")
    os.link(hard / "SKILL.md", ws / "other-name")
    found = look(ws)
    assert "fifo" in found["texts"][0]["fault"]
    assert "directory" in found["skills"][0]["fault"]
    assert "hard links" in found["skills"][1]["fault"]
    assert look(ws, hard_links=True)["skills"][1]["text"] == "hard"


def test_everything_is_bounded(ws: Path) -> None:
    (ws / "CLAUDE.md").write_text("x" * 1000)
    for number in range(20):
        add_skill(ws, f"s{number:02}", "y" * 1000)
    (ws / "skills" / ".git").mkdir()
    (ws / "skills" / "README.md").write_text("no skill")
    found = look(ws, most=5)
    assert len(found["texts"][0]["text"]) == 100
    assert [len(skill["text"]) for skill in found["skills"]] == [50] * 5
    assert found["more"] == 15


def test_names_that_are_not_utf8_can_be_told(ws: Path) -> None:
    os.makedirs(os.fsencode(ws) + b"/skills/\xff")
    [skill] = look(ws)["skills"]
    assert skill["folder"] == "?"
    assert skill["missing"]


async def test_it_comes_through_the_confined_worker(sandbox: Sandbox, ws: Path, place: Path) -> None:
    (ws / "AGENTS.md").symlink_to(place / "outside" / "secret.txt")
    add_skill(ws, "a", "front")
    found = await sandbox.file(Workspace("host", sandbox.root), "survey", asked())
    assert found["skills"] == [{"folder": "a", "text": "front", "size": 5}]
    assert "text" not in found["texts"][0]


async def test_no_tool_of_the_model_reaches_it(tools: SandboxToolset) -> None:
    result = await tools.call("survey", asked())
    assert result.text == "there is no tool named survey"


@pytest.fixture
async def skilled(ws: Path, place: Path) -> AsyncIterator[SandboxToolset]:
    folder = place / "home" / "skills" / "greet"
    folder.mkdir(parents=True)
    (folder / "hello.sh").write_text("echo hello from the skill\n")
    (place / "home" / "store").mkdir()
    (place / "home" / "store" / "db").write_text("store-secret")
    policy = SandboxPolicy(
        workspace=ws, skill_paths=(folder.parent, place / "missing"), secret_paths=(place / "home" / "store",)
    )
    async with Sandbox(policy) as running:
        yield toolset(running, "conv-skilled")


async def test_a_skill_that_a_package_tool_linked_from_its_cache_can_be_read(
    skilled: SandboxToolset, place: Path, ws: Path
) -> None:
    script = place / "home" / "skills" / "greet" / "hello.sh"
    os.link(script, place / "cache")
    assert "hello from the skill" in (await skilled.call("read_file", {"path": str(script)})).text
    os.link(ws / "ok.txt", place / "elsewhere")
    assert "several hard links" in (await skilled.call("read_file", {"path": str(ws / "ok.txt")})).text


async def test_skills_are_readable_and_executable_but_not_writable(
    skilled: SandboxToolset, place: Path
) -> None:
    script = place / "home" / "skills" / "greet" / "hello.sh"
    assert "hello from the skill" in (await skilled.call("read_file", {"path": str(script)})).text
    assert "hello from the skill" in (await skilled.call("exec", {"command": f"bash {script}"})).text
    assert (await skilled.call("exec", {"command": f"cat {script}"})).text.startswith("echo hello")
    for name, arguments in (
        ("write_file", {"path": str(script), "content": "x", "overwrite": True}),
        ("append_file", {"path": str(script), "content": "x"}),
        ("exec", {"command": f"echo x >> {script}"}),
        ("exec", {"command": f"chmod 777 {script}"}),
        ("exec", {"command": f"python3 -c 'import os; os.fchmod(os.open(\"{script}\", 0), 0o777)'"}),
        ("exec", {"command": f"touch {script.parent}/new"}),
        ("read_file", {"path": str(place / "home" / "store" / "db")}),
        ("exec", {"command": f"python3 -c 'print(open(\"{place}/home/store/db\").read())'"}),
    ):
        result = await skilled.call(name, arguments)
        assert result.is_error, (name, arguments)
        assert "store-secret" not in result.text
    assert script.read_text() == "echo hello from the skill\n"
    assert script.stat().st_mode & 0o777 != 0o777


def test_a_directory_of_skills_with_a_secret_in_it_is_refused(place: Path) -> None:
    with pytest.raises(Misconfigured, match="must stay secret"):
        SandboxPolicy(workspace=place / "ws", skill_paths=(place,), secret_paths=(place / "store",))

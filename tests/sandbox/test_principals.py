"""Principals: each works in a directory of its own and sees nothing of the others', not even names."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest

from host.ports import Allowance, Trust, Workspace
from host.sandbox.client import Sandbox
from host.sandbox.policy import SandboxPolicy, principal_uids
from host.tools.files_and_commands import SandboxToolset
from shared.errors import Misconfigured
from tests.sandbox.opened import private_directory, toolset
from tests.sandbox.processes import started

UIDS = principal_uids(None)
CANARY = "canary-of-the-other"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for uids of their own")


@pytest.fixture
async def sandbox(ws: Path, level: int) -> AsyncIterator[Sandbox]:
    policy = SandboxPolicy(workspace=ws, max_level=level, uids=UIDS)
    async with Sandbox(policy) as running:
        yield running


def workspace_of(sandbox: Sandbox, number: int, *, conversation: str = "", **granted: Any) -> Workspace:
    root = sandbox.policy.principals_dir / f"random-{number}"
    allowance = replace(Allowance(UIDS[number], (str(root),)), **granted)
    return Workspace(conversation or f"conv-{number}", root, Trust.MAIN, allowance)


def tools_of(sandbox: Sandbox, number: int, **granted: Any) -> SandboxToolset:
    return SandboxToolset(sandbox, sandbox.policy, workspace_of(sandbox, number, **granted))


async def done(tools: SandboxToolset, command: str) -> str:
    result = await tools.call("exec", {"command": command})
    assert not result.is_error, result.text
    return result.text


async def test_files_and_commands_of_a_principal_are_in_its_own_directory_under_its_own_uid(
    sandbox: Sandbox,
) -> None:
    tools = tools_of(sandbox, 1)
    assert not (await tools.call("write_file", {"path": "a/b.txt", "content": "mine"})).is_error
    text = await done(tools, "id -u; cat a/b.txt; pwd; echo x > made; ls -la")
    root = sandbox.policy.principals_dir / "random-1"
    assert text.splitlines()[:2] == [str(UIDS[1]), f"mine{root}"]
    for path in (root, root / "a", root / "a" / "b.txt", root / "made"):
        assert path.stat().st_uid == UIDS[1]
    assert root.stat().st_mode & 0o777 == 0o700
    assert root.parent.stat().st_mode & 0o777 == 0o711


async def test_a_principal_sees_nothing_of_another_or_of_the_operator(sandbox: Sandbox, ws: Path) -> None:
    theirs, mine = tools_of(sandbox, 2), tools_of(sandbox, 1)
    await theirs.call("write_file", {"path": "secret.txt", "content": CANARY})
    await done(theirs, f"echo {CANARY} > $TMPDIR/secret; chmod 777 . secret.txt $TMPDIR $TMPDIR/secret")
    private = await private_directory_of(sandbox, 2)
    other = sandbox.policy.principals_dir / "random-2"
    for path in (other, other / "secret.txt", private, f"{private}/secret", ws / "ok.txt", other.parent):
        for tool in ("read_file", "list_dir"):
            assert (await mine.call(tool, {"path": str(path)})).is_error
        command = f"cat {path} {path}/*; ls -la {path}; echo x > {path}; chmod 777 {path}; echo ended"
        text = (await mine.call("exec", {"command": f"p=1; {command}"})).text
        assert CANARY not in text
        assert "fine" not in text
        script = f"p={str(path)[:5]}; q={str(path)[5:]}; cat $p$q; ls -A $p$q; echo x > $p$q/x; stat $p$q/x"
        text = (await mine.call("exec", {"command": script})).text
        assert CANARY not in text
        assert "secret" not in text.replace(str(path), "")
    assert (other / "secret.txt").read_text() == CANARY
    operator = toolset(sandbox, "main")
    for path in (other / "secret.txt", other, other.parent):
        assert (await operator.call("read_file", {"path": str(path)})).is_error
        assert CANARY not in (await operator.call("exec", {"command": f"p={other}; cat $p/*; ls $p"})).text


async def test_a_principal_reads_and_signals_no_process_of_another(sandbox: Sandbox) -> None:
    theirs, mine = tools_of(sandbox, 2), tools_of(sandbox, 1)
    await theirs.call("exec", {"command": f"sleep 318.5; echo {CANARY}", "background": True})
    pid = await started("318.5")
    assert psutil.Process(pid).uids().real == UIDS[2]
    look = f"kill -9 {pid}; cat /proc/{pid}/environ; ls /proc/{pid}/fd; cat /proc/{pid}/cwd/*"
    assert CANARY not in (await mine.call("exec", {"command": look})).text
    assert psutil.pid_exists(pid)
    if sandbox.report.level == 3:
        assert CANARY not in (await mine.call("exec", {"command": "cat /proc/[0-9]*/cmdline"})).text
    listed = await mine.call("exec", {"action": "list"})
    assert listed.text == "no background commands"
    await sandbox.forget("conv-2")


async def test_what_the_operator_allows_itself_reaches_a_principal_only_where_it_is_granted(
    place: Path, ws: Path, level: int
) -> None:
    outside = place / "outside"
    policy = SandboxPolicy(
        workspace=ws, max_level=level, uids=UIDS, read_paths=(str(outside),), skill_paths=(outside,)
    )
    async with Sandbox(policy) as sandbox:
        path = {"path": str(outside / "secret.txt")}
        assert not (await toolset(sandbox, "main").call("read_file", path)).is_error
        assert (await tools_of(sandbox, 1).call("read_file", path)).is_error
        denied = await tools_of(sandbox, 1).call("exec", {"command": f"p={outside}; cat $p/secret.txt"})
        assert denied.is_error
        granted = tools_of(sandbox, 2, read_paths=(str(outside),))
        assert not (await granted.call("read_file", path)).is_error
        assert "outside-secret" in await done(granted, f"cat {outside}/secret.txt")


async def test_names_that_may_be_read_are_no_links_to_somewhere_else(sandbox: Sandbox, place: Path) -> None:
    main = tools_of(sandbox, 1)
    await main.call("write_file", {"path": "MEMORY.md", "content": "notes"})
    await main.call("write_file", {"path": "skills/x/SKILL.md", "content": "a skill"})
    root = sandbox.policy.principals_dir / "random-1"
    own = Path(f"{root}.conversations/abc")
    allowance = Allowance(UIDS[1], (str(root),), tuple(f"{root}/{name}" for name in ("MEMORY.md", "skills")))
    apart = SandboxToolset(sandbox, sandbox.policy, Workspace("apart", own, Trust.MAIN, allowance))
    assert "notes" in (await apart.call("read_file", {"path": f"{root}/MEMORY.md"})).text
    assert "a skill" in await done(apart, f"cat {root}/skills/x/SKILL.md; echo mine > mine")
    assert own.joinpath("mine").read_text() == "mine\n"
    for command in (f"echo x > {root}/MEMORY.md", f"echo x > {root}/skills/x/SKILL.md", f"ls {root}"):
        assert (await apart.call("exec", {"command": f"p=1; {command}"})).is_error
    assert (await apart.call("write_file", {"path": f"{root}/MEMORY.md", "content": "x"})).is_error
    await main.call("write_file", {"path": "MEMORY.md", "content": "newer notes", "overwrite": True})
    assert "newer notes" in (await apart.call("read_file", {"path": f"{root}/MEMORY.md"})).text
    assert "newer notes" in await done(apart, f"cat {root}/MEMORY.md")
    (place / "outside").chmod(0o755)
    await done(
        main,
        f"rm -r skills MEMORY.md; ln -s {place}/outside skills; ln -s {place}/outside/secret.txt MEMORY.md",
    )
    await sandbox.forget("apart")
    for path in ("skills/secret.txt", "MEMORY.md"):
        assert (await apart.call("read_file", {"path": f"{root}/{path}"})).is_error
        text = (await apart.call("exec", {"command": f"p=1; cat {root}/{path}"})).text
        assert "outside-secret" not in text


async def test_a_changed_grant_counts_for_the_next_command(sandbox: Sandbox, place: Path) -> None:
    outside = place / "outside"
    before, after = tools_of(sandbox, 1), tools_of(sandbox, 1, read_paths=(str(outside),))
    command = {"command": f"p={outside}; cat $p/secret.txt"}
    assert (await before.call("exec", command)).is_error
    assert not (await after.call("exec", command)).is_error
    assert (await before.call("exec", command)).is_error


ASKED = {
    "known": "",
    "texts": [{"names": ["MEMORY.md"], "limit": 100, "tail": 10}],
    "skills": "skills",
    "limit": 50,
    "most": 10,
}


async def seen(sandbox: Sandbox, number: int, **granted: Any) -> dict[str, Any]:
    """Return what the host's look at a principal's directory finds."""
    return await sandbox.survey(workspace_of(sandbox, number, **granted), ASKED)


async def test_one_worker_looks_at_the_directories_of_all_principals(sandbox: Sandbox) -> None:
    for number in (1, 2, 3):
        await tools_of(sandbox, number).call("write_file", {"path": "MEMORY.md", "content": f"of {number}"})
        await sandbox.forget(f"conv-{number}")
    before = {each.pid for each in below(sandbox)}
    for number in (1, 2, 3, 1):
        [text] = (await seen(sandbox, number))["texts"]
        assert text["text"] == f"of {number}"
    [surveyor] = [each for each in below(sandbox) if each.pid not in before]
    status = Path(f"/proc/{surveyor.pid}/status").read_text()
    assert int(status.split("CapPrm:")[1].split()[0], 16) == 1 << 6 | 1 << 7  # CAP_SETGID, CAP_SETUID


def below(sandbox: Sandbox) -> list[psutil.Process]:
    assert sandbox.supervisor is not None
    return psutil.Process(sandbox.supervisor.process.pid).children()


async def test_a_directory_that_comes_after_the_look_is_seen_by_the_next(sandbox: Sandbox) -> None:
    found = await seen(sandbox, 1)
    assert (found["stamp"], found["links"]) == ("", True)
    await tools_of(sandbox, 1).call("write_file", {"path": "MEMORY.md", "content": "mine"})
    assert (await seen(sandbox, 1))["texts"][0]["text"] == "mine"


PLANTED = (
    "ln -s $p$q/MEMORY.md MEMORY.md",
    "ln -s ..$q/MEMORY.md MEMORY.md",
    "e=environ; ln -s /proc/self/$e MEMORY.md",
    "mkfifo MEMORY.md",
    "truncate -s 500M MEMORY.md",
    "mkdir MEMORY.md",
    "ln -s $p$q/skills skills",
    "ln -s ..$q/skills skills",
    "mkdir skills; ln -s $p$q/skills/x skills/x",
    "mkdir -p skills/x; ln -s $p$q/skills/x/SKILL.md skills/x/SKILL.md",
    "mkdir -p skills/x; mkfifo skills/x/SKILL.md",
    "mkfifo skills",
    "mkdir skills; cd skills; seq -f %05g 3000 | xargs mkdir",
    "chmod 000 .",
)


async def test_what_principals_plant_shows_nothing_of_others_and_stops_no_look(sandbox: Sandbox) -> None:
    theirs = tools_of(sandbox, 2)
    for path in ("MEMORY.md", "skills/x/SKILL.md"):
        await theirs.call("write_file", {"path": path, "content": CANARY})
    other = sandbox.policy.principals_dir / "random-2"
    await done(theirs, "chmod -R 777 .")
    for number, planted in enumerate(PLANTED, start=3):
        await done(tools_of(sandbox, number), f"p={other.parent}; q=/random-2; {planted}")
        with anyio.fail_after(60):
            found, others = await seen(sandbox, number), await seen(sandbox, 2)
        assert CANARY not in str(found), planted
        assert "PATH=" not in str(found), planted
        assert others["texts"][0]["text"] == others["skills"][0]["text"] == CANARY, planted


async def test_a_root_that_is_a_link_is_not_looked_at(sandbox: Sandbox) -> None:
    await tools_of(sandbox, 2).call("write_file", {"path": "MEMORY.md", "content": CANARY})
    principals = sandbox.policy.principals_dir
    (principals / "random-1").symlink_to(principals / "random-2")
    assert CANARY not in str(await seen(sandbox, 1))
    (principals / "random-3").symlink_to("/etc")
    workspace = replace(workspace_of(sandbox, 3), root=Path("/etc"))
    asked = ASKED | {"texts": [{"names": ["passwd"], "limit": 100}]}
    assert "root" not in str((await sandbox.survey(workspace, asked))["texts"])


async def test_a_survey_without_landlock_is_the_principals_own_workers(ws: Path) -> None:
    policy = SandboxPolicy(workspace=ws, uids=UIDS, max_landlock_abi=0)
    async with Sandbox(policy) as sandbox:
        await tools_of(sandbox, 1).call("write_file", {"path": "MEMORY.md", "content": "mine"})
        assert (await seen(sandbox, 1))["texts"][0]["text"] == "mine"


def test_the_directory_of_principals_lies_apart_from_the_workspace(ws: Path) -> None:
    for principals in (ws / "principals", ws.parent, ws):
        with pytest.raises(Misconfigured, match="PRINCIPALS_DIR"):
            SandboxPolicy(workspace=ws, principals=principals)


async def private_directory_of(sandbox: Sandbox, number: int) -> str:
    return (await done(tools_of(sandbox, number), "echo $TMPDIR")).splitlines()[0]


async def test_the_operators_private_files_are_closed_to_a_principal(sandbox: Sandbox) -> None:
    await toolset(sandbox, "main").call(
        "exec", {"command": f"echo {CANARY} > $TMPDIR/x; chmod -R 777 $TMPDIR"}
    )
    private = await private_directory(sandbox, "main")
    text = (await tools_of(sandbox, 1).call("exec", {"command": f"p={private}; cat $p/x; ls $p/.."})).text
    assert CANARY not in text

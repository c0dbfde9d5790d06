"""Each principal's runs work in a place of their own, and know its own words and no others."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import anyio
import pytest

from host.app import Host, open_host
from host.http.callers import Enrolment
from host.models.process import ModelProcess
from host.ports import Workspace
from host.runs import attachments, conversation_files
from host.runs.principals import THE_OPERATOR
from host.runs.spec import RunSpec
from shared.clock import now_ms
from shared.errors import Conflict, Misconfigured
from shared.principals import OPERATOR, Principal, Reach, Terms, stored_name
from shared.settings import load
from shared.values import Lease
from tests.contract.store.test_tasks_contract import a_task
from tests.sandbox.processes import gone, started

pytestmark = pytest.mark.processes


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that other uids can pass through."""
    root = Path(tempfile.mkdtemp(prefix="spaces-"))
    root.chmod(0o755)
    yield root
    shutil.rmtree(root, ignore_errors=True)


@asynccontextmanager
async def a_host(place: Path, **environment: str) -> AsyncIterator[Host]:
    environ = {
        "HOME": str(place),
        "PICOCLAW_HOME": str(place / "home"),
        "API_TOKEN": "t" * 32,
        "SCHEDULER": "external",
    }
    settings = load({**environ, **environment})
    async with ModelProcess() as process, open_host(settings, lambda _: None, process) as host:
        await host.sandbox.ready()
        yield host


async def a_principal(host: Host, name: str, **terms: Any) -> Principal:
    principal = Principal(
        f"prin-{uuid4()}", name, directory=uuid4().hex, created_at=now_ms(), terms=Terms(**terms)
    )
    return await host.ledger.store.principals.add(principal, host.sandbox.policy.uids)


def lease_of(principal: Principal, conversation: str = "other") -> Lease:
    name = stored_name(principal.id, conversation)
    return Lease("run", name, "host", 1, "", "", temporary=False, trusted=True, principal_id=principal.id)


async def no_approval(*_: object) -> str:
    return ""


async def say(
    host: Host, principal: Principal | None, words: str, conversation: str = "main", **more: Any
) -> str:
    """Have a conversation of a principal's go on; return the answer."""
    store = host.ledger.store
    conversation_id = conversation if principal is None else stored_name(principal.id, conversation)
    whose = OPERATOR if principal is None else principal.id
    await store.conversations.ensure(conversation_id, now_ms(), principal_id=whose)
    run = await host.runs.start(RunSpec(words, conversation_id, principal_id=whose, **more))
    answer = await run.wait()
    return str(answer["result"])


async def test_a_principals_runs_work_in_its_own_directory_and_see_its_own_words(place: Path) -> None:
    async with a_host(place) as host:
        one, two = await a_principal(host, "One"), await a_principal(host, "Two")
        await say(host, None, "remember that I like water")
        await say(host, one, "remember that I like tea")
        assert "water" in await say(host, None, "what do you remember?")
        assert "tea" in await say(host, one, "what do you remember?", "another")
        for principal in (two, None):
            assert "tea" not in await say(host, principal, "what do you remember?")
        assert "water" not in await say(host, one, "what do you remember?")
        root = host.settings.principals_dir / one.directory
        assert str(root) in await say(host, one, "run `pwd`")
        if os.geteuid() == 0:
            assert one.uid != two.uid
            assert str(one.uid) in await say(host, one, "run `id -u`")
            assert (root / "MEMORY.md").stat().st_uid == one.uid


async def test_what_a_chat_brings_and_the_archive_lie_in_the_space_of_its_principal(
    place: Path,
) -> None:
    async with a_host(place) as host:
        one = await a_principal(host, "One")
        root = host.settings.principals_dir / one.directory
        name = stored_name(one.id, "telegram:1")
        for who in (attachments.WRITER, conversation_files.WRITER):
            workspace = await host.spaces.of_host(who, one.id, name)
            assert workspace.root == root
            assert workspace.allowance is not None
            assert workspace.allowance.uid == one.uid
        operators = await host.spaces.of_host(conversation_files.WRITER, OPERATOR, "telegram:1")
        assert operators == Workspace(conversation_files.WRITER, host.settings.memory_dir)


async def test_what_the_operator_configured_reaches_a_principal_only_where_granted(
    place: Path,
) -> None:
    (place / "shared").mkdir()
    settings = {
        "tools": {
            "exec": {"allow_network": True},
            "allow_read_paths": [str(place / "shared")],
            "mcp": {"servers": {"one": {"command": "true"}, "two": {"command": "true"}}},
        }
    }
    (place / "home").mkdir(mode=0o755)
    (place / "home" / "config.json").write_text(json.dumps(settings))
    async with a_host(place) as host:
        grants = {
            "network": True,
            "read_paths": [str(place / "shared"), "/etc"],
            "mcp": ["two"],
            "skills": True,
        }
        rich, poor = await a_principal(host, "Rich", grants=grants), await a_principal(host, "Poor")
        found = {}
        for principal in (rich, poor, THE_OPERATOR):
            lease = lease_of(principal)
            space = host.spaces.of_run(lease, None, await host.principals.get(lease.principal_id))
            spec = RunSpec("hi", lease.conversation_id)
            async with host.tools.open(spec, lease, space.principal, no_approval) as tools:
                problems = " ".join(tools.external.problems) if tools.external else ""
            found[principal.name] = (space.workspace.allowance, problems)
        allowance, problems = found["Rich"]
        assert allowance is not None
        assert (allowance.allow_network, allowance.read_paths) == (True, (str(place / "shared"),))
        assert str(host.settings.skills_dir) in allowance.skill_paths
        assert "two" in problems
        assert "one" not in problems
        allowance, problems = found["Poor"]
        assert allowance is not None
        assert (allowance.allow_network, allowance.read_paths, problems) == (False, (), "")
        assert str(host.settings.skills_dir) not in allowance.skill_paths
        assert found["operator"][0] is None


@pytest.mark.parametrize("whose", ["a principal's", "the operator's"])
async def test_a_conversation_may_have_a_directory_of_its_own(place: Path, whose: str) -> None:
    async with a_host(place, PICOCLAW_AGENTS_DEFAULTS_WORKSPACE_SCOPE="conversation") as host:
        who = await a_principal(host, "One") if whose == "a principal's" else None
        directory = host.settings.memory_dir if who is None else host.settings.principals_dir / who.directory
        await say(host, who, "remember that I like tea")
        await say(host, who, "write one to notes.txt", "telegram:1")
        assert "No such file" in await say(host, who, "run `cat notes.txt`", "telegram:2")
        assert "No such file" in await say(host, who, "run `cat notes.txt`")
        assert "one" in await say(host, who, "run `cat notes.txt`", "telegram:1")
        assert "tea" in await say(host, who, f"run `cat {directory}/MEMORY.md`", "telegram:1")
        assert "tea" not in await say(host, who, "run `cat MEMORY.md`", "telegram:1")
        for command in (f"echo x >> {directory}/MEMORY.md", f"ls {directory}", f"ls {directory}/.."):
            assert "I could not run" in await say(host, who, f"run `true; {command}`", "telegram:1")
        name = "telegram:1" if who is None else stored_name(who.id, "telegram:1")
        owner = OPERATOR if who is None else who.id
        spec = RunSpec("run `cat notes.txt`", temporary=True, parent_id=name, principal_id=owner)
        task = await host.runs.start(spec)
        assert "one" in str((await task.wait())["result"])
        own = (await host.spaces.of_host("", owner, name)).root
        assert (own / "notes.txt").read_text() == "one\n"
        assert not own.is_relative_to(directory)
        await host.runs.delete_conversation(name)
        assert not own.exists()
        assert (directory / "MEMORY.md").exists()


async def test_the_files_of_a_conversation_that_goes_with_its_task_go_with_it(place: Path) -> None:
    async with a_host(place, PICOCLAW_AGENTS_DEFAULTS_WORKSPACE_SCOPE="conversation") as host:
        tasks = host.ledger.store.tasks
        await tasks.add(a_task(conversation_id="own"), quota=9, alone_for=OPERATOR)
        await say(host, None, "write one to notes.txt", "own")
        own = (await host.spaces.of_host("", OPERATOR, "own")).root
        assert (own / "notes.txt").exists()
        assert await tasks.remove("task-1", Reach())
        await host.runs.forget_deleted()
        assert not own.exists()
        assert await host.ledger.store.conversations.gone(9) == []


async def test_the_operators_conversation_in_a_directory_of_its_own_has_what_the_operator_configured(
    place: Path,
) -> None:
    (place / "shared").mkdir()
    settings = {"tools": {"exec": {"allow_network": True}, "allow_read_paths": [str(place / "shared")]}}
    (place / "home").mkdir(mode=0o755)
    (place / "home" / "config.json").write_text(json.dumps(settings))
    async with a_host(place, PICOCLAW_AGENTS_DEFAULTS_WORKSPACE_SCOPE="conversation") as host:
        allowance = (await host.spaces.of_host("", OPERATOR, "telegram:1")).allowance
        assert allowance is not None
        assert (allowance.allow_network, allowance.read_paths) == (True, (str(place / "shared"),))
        assert str(host.settings.skills_dir) in allowance.skill_paths


async def test_a_deleted_principal_leaves_no_file_and_no_process(place: Path) -> None:
    async with a_host(place) as host:
        one, two = await a_principal(host, "One"), await a_principal(host, "Two")
        for each in (one, two):
            await say(host, each, "remember that I like tea")
            await say(host, each, "write x to a/b/c.txt", "another")
        space = host.spaces.of_run(lease_of(one), None, one)
        await host.sandbox.run(space.workspace, {"command": "sleep 319.5 & sleep 319.5", "background": True})
        pid = await started("319.5")
        assert await host.spaces.forget(one)
        await gone(pid)
        names = {path.name for path in host.settings.principals_dir.iterdir()}
        assert names == {two.directory}
        assert await host.spaces.forget(one)


async def test_a_host_that_was_away_removes_what_a_deleted_principal_had_there(place: Path) -> None:
    async with a_host(place) as host:
        one = await a_principal(host, "One")
        await say(host, one, "remember that I like tea")
        root = host.settings.principals_dir / one.directory
    async with a_host(place) as host:
        assert root.exists()
        await host.ledger.store.principals.begin_deletion(one.id, now_ms())
    async with a_host(place) as host:
        with anyio.fail_after(60):
            while root.exists():
                await anyio.sleep(0.01)


@pytest.mark.parametrize(
    "loosened",
    [
        {"PICOCLAW_AGENTS_DEFAULTS_RESTRICT_TO_WORKSPACE": "false"},
        {"PICOCLAW_AGENTS_DEFAULTS_ALLOW_READ_OUTSIDE_WORKSPACE": "true"},
        {"SANDBOX_MIN_LEVEL": "0"},
    ],
)
async def test_a_start_that_would_open_principals_to_each_other_stops(
    place: Path, loosened: dict[str, str]
) -> None:
    async with a_host(place, **loosened) as host:
        with pytest.raises(Conflict, match="see each other's files with"):
            await Enrolment(host.ledger.store, host.sandbox, "main").make("One", Terms())
        one = await a_principal(host, "One")
        assert "see each other's files with" in await say(host, one, "run `id`")
    with pytest.raises(Misconfigured, match="principals in the store"):
        async with a_host(place, **loosened):
            pass


async def test_what_a_principals_files_take_is_told(place: Path) -> None:
    async with a_host(place) as host:
        one = await a_principal(host, "One")
        assert await host.spaces.used(one) == 0
        await say(host, one, "run `head -c 3M /dev/zero > big`")
        used = await host.spaces.used(one)
        assert used is not None
        assert 3 << 20 <= used < 4 << 20
        assert await host.spaces.used(THE_OPERATOR) is None

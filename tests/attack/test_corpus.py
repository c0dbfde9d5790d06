"""Every attempt of the corpus, for real, against each way to run; and every harmless command."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from host.sandbox.client import Sandbox
from host.sandbox.policy import SandboxPolicy
from tests.attack import entries
from tests.attack.world import (
    LIFTED_MODES,
    MODES,
    PRINCIPAL_MODES,
    RARE_MODES,
    ROOT,
    Mode,
    Outcome,
    World,
    end,
    may_read,
)
from tests.sandbox.opened import toolset

FILES = ("sandbox.yaml", "own.yaml", "thin.yaml", "third.yaml")
CORPORA = {name: entries.load(name) for name in FILES if (entries.CORPUS / name).exists()}
ATTEMPTS = [(name, entry) for name, corpus in CORPORA.items() for entry in corpus["attempts"]]
HARMLESS = [(name, entry) for name, corpus in CORPORA.items() for entry in corpus["benign"]]

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to take several identities")


def _ids(cases: list[tuple[str, dict[str, Any]]]) -> list[str]:
    return [entry["id"] for _, entry in cases]


PATIENCE = 8
"""How many times as long a call may take on a machine that does other things too."""

# nothing but Landlock keeps a signal from the reaper, which as process 1 is immune to what it does not handle
SIGNALS_ITS_REAPER = {"own-sg-01", "cg-19", "sg-07"}

WAYS = [*MODES, *(pytest.param(mode, marks=pytest.mark.slow) for mode in (*RARE_MODES, *PRINCIPAL_MODES))]


@contextlib.contextmanager
def running(mode: Mode) -> Iterator[World]:
    if not may_read(mode.host_uid, ROOT / "tests/attack/host_process.py"):
        pytest.skip(f"needs a tree that uid {mode.host_uid} may read")
    made = World(mode)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module", params=WAYS, ids=lambda mode: mode.name)
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    with running(request.param) as made:
        assert made.facts["level"] >= 2, made.facts
        yield made


def _input(world: World, entry: dict[str, Any]) -> dict[str, Any]:
    if entry["tool"] == "exec" and isinstance(entry["input"], str):
        return {"command": world.fill_in(entry["input"])}
    return {k: world.fill_in(v) if isinstance(v, str) else v for k, v in entry["input"].items()}


def _prepare(world: World, entry: dict[str, Any]) -> None:
    if "pre" in entry:
        world.run_unconfined(world.fill_in(entry["pre"])).wait(60)


def _perform(world: World, corpus: dict[str, Any], entry: dict[str, Any], *, patience: int = 1) -> Outcome:
    timeout = entry.get("timeout", corpus["timeout"]) * patience
    arguments = _input(world, entry)
    if entry["tool"] == "exec":
        arguments.setdefault("timeout_ms", timeout * 1000)
    limits = entry.get("limits", {})
    beside = world.run_unconfined(world.fill_in(entry["concurrent"])) if "concurrent" in entry else None
    until = time.monotonic() + entry.get("repeat_s", 0)
    try:
        outcome = world.call(entry["tool"], arguments, entry["id"], limits)
        while time.monotonic() < until:
            outcome = world.call(entry["tool"], arguments, entry["id"], limits)
    finally:
        if beside is not None:
            end(beside)
    return outcome


def _late(outcome: Outcome, oracle: dict[str, Any], timeout: float, patience: int = 1) -> list[str]:
    """Faults that a busy machine has too."""
    faults = []
    if outcome.wall > oracle.get("max_wall", timeout + 5) * patience:
        faults.append(f"took {outcome.wall:.1f} s")
    if outcome.ended == "timeout" and "timeout" not in oracle.get("reason", ["timeout"]):
        faults.append("ended by timeout")
    return faults


def _faults(outcome: Outcome, oracle: dict[str, Any]) -> list[str]:
    faults = [f"output has {sign!r}" for sign in oracle.get("lacks", []) if sign in outcome.text]
    if len(outcome.text) > oracle.get("max_out", 1 << 20):
        faults.append(f"{len(outcome.text)} bytes of output")
    if "reason" in oracle and outcome.ended not in (*oracle["reason"], "timeout"):
        faults.append(f"ended by {outcome.ended}")
    if oracle.get("tool_error") and not outcome.is_error:
        faults.append("the tool did not refuse")
    return faults


@pytest.mark.parametrize(("corpus_name", "entry"), ATTEMPTS, ids=_ids(ATTEMPTS))
def test_an_attempt_gets_nowhere(world: World, corpus_name: str, entry: dict[str, Any]) -> None:
    corpus = CORPORA[corpus_name]
    if missing := entries.missing_programs(entry, harmless=False):
        pytest.skip(f"needs {missing}")
    world.lay_out(CORPORA["sandbox.yaml"]["prelude"], entry["id"], entry.get("limits", {}))
    _prepare(world, entry)
    before = world.state()
    oracle, timeout = entry.get("oracle", {}), entry.get("timeout", corpus["timeout"])
    outcome = _perform(world, corpus, entry)
    leaks = world.leaks(outcome.text)
    if _late(outcome, oracle, timeout):
        outcome = _perform(world, corpus, entry, patience=PATIENCE)
    faults = [*leaks, *_faults(outcome, oracle), *_late(outcome, oracle, timeout, PATIENCE)]
    if "ws_max_mb" in oracle and world.disk_megabytes() > oracle["ws_max_mb"]:
        faults.append(f"{world.disk_megabytes()} MB in the workspace")
    faults += world.leaks(outcome.text)
    faults += [f"still running: {line}" for line in world.left_running()]
    after = world.state()
    faults += [
        f"changed: {key}: {_difference(before[key], after[key])}"
        for key in before
        if before[key] != after[key]
    ]
    world.ask(op="forget", conversation=entry["id"], limits=entry.get("limits", {}))
    if faults and "residual" in entry and world.facts["level"] < 3:
        pytest.skip(f"residual at this level: {faults}")
    if faults and entry["id"] in SIGNALS_ITS_REAPER and world.mode.max_landlock_abi == 0:
        pytest.skip("at this level process 1 may be signalled, and the kernel drops it")
    assert not faults, f"{faults}\n{outcome.text[:3000]}"


def _difference(before: Any, after: Any) -> str:
    if isinstance(before, dict) and isinstance(after, dict):
        keys = {k for k in before.keys() | after.keys() if before.get(k) != after.get(k)}
        return ", ".join(f"{k}: {before.get(k)} -> {after.get(k)}" for k in sorted(keys))
    return f"{before} -> {after}"


@pytest.mark.parametrize(("corpus_name", "entry"), HARMLESS, ids=_ids(HARMLESS))
def test_a_harmless_call_works(world: World, corpus_name: str, entry: dict[str, Any]) -> None:
    corpus = CORPORA[corpus_name]
    if entry["tool"] not in entries.SIX_TOOLS:
        pytest.skip(f"needs a tool {entry['tool']}")
    if missing := entries.missing_programs(entry, harmless=True):
        pytest.skip(f"needs {missing}")
    world.lay_out(CORPORA["sandbox.yaml"]["prelude"], entry["id"], {})
    _prepare(world, entry)
    # It is to work, however busy the machine is.
    outcome = _perform(world, corpus, entry, patience=PATIENCE)
    then = None
    if "then" in entry:
        then = world.call("exec", {"command": entry["then"]}, entry["id"], {})
    world.ask(op="forget", conversation=entry["id"], limits={})
    faults = [f"lacks {sign!r}" for sign in entry["expect"].get("has", []) if sign not in outcome.text]
    code = entry["expect"].get("rc")
    if code is not None and f"[exit code {code}, " not in outcome.text:
        faults.append(f"exit code is not {code}")
    if then is not None and then.is_error:
        faults.append(f"afterwards: {then.text}")
    if faults and "known_break" in entry and world.facts["level"] < 3:
        pytest.skip(entry["known_break"])
    assert not faults, f"{faults}\n{outcome.text[:3000]}"


PERSISTS = {"own-ps-04", "own-wr-06"}
"""What would change the machine of whoever runs the tests."""

AT_SECRETS = [(name, entry) for name, entry in ATTEMPTS if "@OUT@" in str(entry["input"])]
OF_EACH_KIND = {"rd-01", "wr-01", "wr-04", "cg-22", "db-01", "rd-19", "own-rd-08", "own-wr-10", "red-ft-15"}
ON_SECRETS = [
    pytest.param(*case, id=case[1]["id"], marks=() if case[1]["id"] in OF_EACH_KIND else pytest.mark.slow)
    for case in AT_SECRETS
    if case[1]["id"] not in PERSISTS
]


@pytest.fixture(scope="module", params=LIFTED_MODES, ids=lambda mode: mode.name)
def open_world(request: pytest.FixtureRequest) -> Iterator[World]:
    mode: Mode = request.param
    with running(mode) as made:
        assert made.facts["level"] == mode.max_level, made.facts
        yield made


@pytest.mark.parametrize(("corpus_name", "entry"), ON_SECRETS)
def test_with_the_wall_lifted_an_attempt_at_secrets_gets_nowhere(
    open_world: World, corpus_name: str, entry: dict[str, Any]
) -> None:
    world, corpus = open_world, CORPORA[corpus_name]
    if missing := entries.missing_programs(entry, harmless=False):
        pytest.skip(f"needs {missing}")
    world.lay_out(CORPORA["sandbox.yaml"]["prelude"], entry["id"], entry.get("limits", {}))
    _prepare(world, entry)
    before = world.state()["outside"]
    outcome = _perform(world, corpus, entry)
    faults = world.leaks(outcome.text)
    if (after := world.state()["outside"]) != before:
        faults.append(f"changed: {_difference(before, after)}")
    world.ask(op="forget", conversation=entry["id"], limits=entry.get("limits", {}))
    assert not faults, f"{faults}\n{outcome.text[:3000]}"


async def test_with_the_wall_lifted_other_paths_are_the_user_s_own(tmp_path: Path) -> None:
    """Everything but the secrets, by commands and by file tools, in the directories above them too."""
    for name in ("home/workspace", "config"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "config" / ".security.yml").write_text("a canary")
    policy = SandboxPolicy(
        workspace=tmp_path / "home" / "workspace",
        restrict_to_workspace=False,
        secret_paths=(tmp_path / "home", tmp_path / "config", tmp_path / "not-there"),
    )
    async with Sandbox(policy) as sandbox:
        report = await sandbox.ready()
        assert (report.level, report.warnings) == (3, ())
        tools = toolset(sandbox, "c")
        for place in ("/", "/tmp", str(Path.home()), str(tmp_path), "../.."):
            for tool, arguments in (("exec", {"command": f"ls {place}"}), ("list_dir", {"path": place})):
                assert not (await tools.call(tool, arguments)).is_error, place
        new = tmp_path / "new"
        assert not (await tools.call("write_file", {"path": str(new), "content": "mine"})).is_error
        assert "mine" in (await tools.call("read_file", {"path": "../../new"})).text
        line = f"cp {new} {new}-2 && ln -s {new} link && cat link {new}-2 && mkdir {new}-3 && rm {new}"
        assert not (await tools.call("exec", {"command": line})).is_error
        assert sorted(path.name for path in tmp_path.iterdir()) == ["config", "home", "new-2", "new-3"]
        refused = await tools.call(
            "exec", {"command": f"ls {tmp_path}/config; cat {tmp_path}/config/.security.yml"}
        )
        assert "canary" not in refused.text
        assert "workspace" not in refused.text
        for line in (f"touch {tmp_path}/config/new", "echo 1 > /sys/kernel/mm/ksm/run", "test -e /dev/sda"):
            assert (await tools.call("exec", {"command": line})).is_error, line


async def test_what_may_be_read_outside_stays_as_it_is(tmp_path: Path) -> None:
    for name in ("home/workspace", "else", "out"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "home" / "store").write_text("a canary")
    (tmp_path / "else" / "f").write_text("to be read")
    policy = SandboxPolicy(
        workspace=tmp_path / "home" / "workspace",
        allow_read_outside_workspace=True,
        write_paths=(str(tmp_path / "out"),),
        secret_paths=(tmp_path / "home",),
        uid=0,
    )
    async with Sandbox(policy) as sandbox:
        assert (await sandbox.ready()).level == 3
        tools = toolset(sandbox, "c")
        read = await tools.call("exec", {"command": f"cat {tmp_path}/else/f; cat {tmp_path}/home/store"})
        assert "to be read" in read.text
        assert "canary" not in read.text
        for path, allowed in (("else/new", False), ("out/new", True), ("home/workspace/new", True)):
            for tool, arguments in (
                ("exec", {"command": f"echo x >> {tmp_path}/{path}"}),
                ("append_file", {"path": f"{tmp_path}/{path}", "content": "x"}),
            ):
                assert (await tools.call(tool, arguments)).is_error is not allowed, path

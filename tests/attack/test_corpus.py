"""Every attempt of the corpus, for real, against each way to run; and every harmless command."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.attack import entries
from tests.attack.world import MODES, RARE_MODES, Mode, Outcome, World, end

FILES = ("sandbox.yaml", "own.yaml", "thin.yaml", "third.yaml")
CORPORA = {name: entries.load(name) for name in FILES if (entries.CORPUS / name).exists()}
ATTEMPTS = [(name, entry) for name, corpus in CORPORA.items() for entry in corpus["attempts"]]
HARMLESS = [(name, entry) for name, corpus in CORPORA.items() for entry in corpus["benign"]]

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to take several identities")


def _ids(cases: list[tuple[str, dict[str, Any]]]) -> list[str]:
    return [entry["id"] for _, entry in cases]


# nothing but Landlock keeps a signal from the reaper, which as process 1 is immune to what it does not handle
SIGNALS_ITS_REAPER = {"own-sg-01", "cg-19", "sg-07"}

WAYS = [*MODES, *(pytest.param(mode, marks=pytest.mark.slow) for mode in RARE_MODES)]


@pytest.fixture(scope="module", params=WAYS, ids=lambda mode: mode.name)
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    mode: Mode = request.param
    made = World(mode)
    assert made.facts["level"] >= 2, made.facts
    yield made
    made.close()


def _input(world: World, entry: dict[str, Any]) -> dict[str, Any]:
    if entry["tool"] == "exec" and isinstance(entry["input"], str):
        return {"command": world.fill_in(entry["input"])}
    return {k: world.fill_in(v) if isinstance(v, str) else v for k, v in entry["input"].items()}


def _prepare(world: World, entry: dict[str, Any]) -> None:
    if "pre" in entry:
        world.run_unconfined(world.fill_in(entry["pre"])).wait(60)


def _perform(world: World, corpus: dict[str, Any], entry: dict[str, Any]) -> Outcome:
    timeout = entry.get("timeout", corpus["timeout"])
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


def _faults(outcome: Outcome, oracle: dict[str, Any], timeout: float) -> list[str]:
    faults = [f"output has {sign!r}" for sign in oracle.get("lacks", []) if sign in outcome.text]
    if outcome.wall > oracle.get("max_wall", timeout + 5):
        faults.append(f"took {outcome.wall:.1f} s")
    if len(outcome.text) > oracle.get("max_out", 1 << 20):
        faults.append(f"{len(outcome.text)} bytes of output")
    if "reason" in oracle and outcome.ended not in oracle["reason"]:
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
    outcome = _perform(world, corpus, entry)
    oracle = entry.get("oracle", {})
    faults = _faults(outcome, oracle, entry.get("timeout", corpus["timeout"]))
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
        pytest.skip("process 1 of its namespace may be signalled, and the kernel drops it")
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
        pytest.skip(f"there is no tool {entry['tool']}")
    if missing := entries.missing_programs(entry, harmless=True):
        pytest.skip(f"needs {missing}")
    world.lay_out(CORPORA["sandbox.yaml"]["prelude"], entry["id"], {})
    _prepare(world, entry)
    outcome = _perform(world, corpus, entry)
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

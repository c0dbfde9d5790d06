from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.running import TOKEN, ContractServer, contract_server, picoclaw

RUN: dict[str, Any] = {
    "run_id": "run-1",
    "root_run_id": "run-1",
    "previous_run_id": None,
    "next_run_id": None,
    "conversation_id": "main",
    "message_id": "msg-1",
    "status": "success",
    "created_at": "2027-01-31T09:30:00.000Z",
    "finished_at": "2027-01-31T09:30:01.500Z",
    "duration_ms": 1500,
    "model": "m",
    "stop_reason": "end_turn",
    "usage": {
        "input_tokens": 1,
        "output_tokens": 1,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
    },
    "error": None,
    "code": None,
}
ENDED: dict[str, Any] = {
    **RUN,
    "answer": {
        "status": "success",
        "conversation_id": "main",
        "message_id": "msg-2",
        "run_id": "run-1",
        "result": "It is [bold]done\x1b[2J.",
    },
}
RUNNING = {**ENDED, "status": "running", "answer": None, "finished_at": None, "duration_ms": None}
WAIT = "/runs/run-1?wait_ms=60000&chain=true"


@pytest.fixture
def host() -> Iterator[ContractServer]:
    with contract_server() as server:
        yield server


def runs(host: ContractServer, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    extra = {"API_TOKEN": TOKEN, "PICOCLAW_URL": host.url, "TZ": "Europe/Berlin"}
    return picoclaw(home, "runs", *arguments, **extra)


def test_runs_are_listed_as_they_are_narrowed(host: ContractServer, tmp_path: Path) -> None:
    refused = {**RUN, "run_id": "run-2", "status": "error", "code": "refused"}
    host.answers["GET", "/runs?code=refused&task_id=daily&limit=20"] = (200, {"runs": [refused, RUN]})
    narrowed = ("list", "--code", "refused", "--task", "daily")
    listed = runs(host, tmp_path, *narrowed).stdout
    for seen in ("run-1", "run-2", "Sun 2027-01-31 10:30 CET", "success", "error (refused)", "1.5s", "main"):
        assert seen in listed
    as_json = json.loads(runs(host, tmp_path, *narrowed, "--json").stdout)
    assert [run["run_id"] for run in as_json] == ["run-2", "run-1"]


def test_a_run_is_shown_with_its_answer(host: ContractServer, tmp_path: Path) -> None:
    host.answers["GET", "/runs/run-1"] = (200, ENDED)
    assert "run-1: success, 1.5s\nIt is [bold]done" in runs(host, tmp_path, "show", "run-1").stdout
    assert json.loads(runs(host, tmp_path, "show", "run-1", "--json").stdout) == ENDED


def test_a_run_is_waited_for_as_long_as_it_goes_on(host: ContractServer, tmp_path: Path) -> None:
    host.answers["GET", "/runs/run-1?wait_ms=1000&chain=true"] = (200, RUNNING)
    gone_on = runs(host, tmp_path, "wait", "run-1", "--timeout", "1s")
    assert (gone_on.returncode, gone_on.stdout) == (1, "run-1: running, -\n\n")
    host.answers["GET", WAIT] = (200, ENDED)
    ended = runs(host, tmp_path, "wait", "run-1", "--json")
    assert (ended.returncode, json.loads(ended.stdout)) == (0, ENDED)
    host.answers["GET", WAIT] = (200, {**ENDED, "status": "error", "code": "refused", "error": "It won't."})
    assert runs(host, tmp_path, "wait", "run-1").returncode == 1


def test_a_run_is_cancelled_or_the_reason_is_told(host: ContractServer, tmp_path: Path) -> None:
    asked = {"status": "cancelling", "conversation_id": "main", "run_id": "run-1"}
    host.answers["POST", "/runs/run-1/cancel"] = (202, asked)
    assert runs(host, tmp_path, "cancel", "run-1").stdout == "Cancelling run-1.\n"
    assert json.loads(runs(host, tmp_path, "cancel", "run-1", "--json").stdout) == asked
    refused = {"error": "Run run-1 is not processing a request", "code": "not_running", "request_id": "r"}
    host.answers["POST", "/runs/run-1/cancel"] = (409, refused)
    told = runs(host, tmp_path, "cancel", "run-1")
    assert (told.returncode, refused["error"] in told.stderr) == (1, True)

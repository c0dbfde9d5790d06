from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.cli.running import TOKEN, ContractServer, contract_server, picoclaw

TASK: dict[str, Any] = {
    "id": "task-1",
    "conversation_id": "main",
    "prompt": "Look [bold]at\x1b[2J the news",
    "schedule_type": "interval",
    "schedule_value": "900000",
    "timezone": "UTC",
    "status": "active",
    "next_run": "2027-01-31T09:30:00.000Z",
}


@pytest.fixture
def host() -> Iterator[ContractServer]:
    with contract_server() as server:
        yield server


def tasks(host: ContractServer, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    extra = {"API_TOKEN": TOKEN, "PICOCLAW_URL": host.url, "TZ": "Europe/Berlin"}
    return picoclaw(home, "tasks", *arguments, **extra)


def test_tasks_are_listed_over_all_pages_with_local_times(host: ContractServer, tmp_path: Path) -> None:
    host.answers["GET", "/tasks"] = (200, {"tasks": [TASK], "next_cursor": "c2"})
    host.answers["GET", "/tasks?cursor=c2"] = (200, {"tasks": [TASK | {"id": "task-2"}], "next_cursor": None})
    listed = tasks(host, tmp_path, "list").stdout
    for seen in ("task-1", "task-2", "every 15m", "Sun 2027-01-31 10:30 CET", "Look [bold]at"):
        assert seen in listed
    assert "\x1b[2J" not in listed
    as_json = tasks(host, tmp_path, "list", "--json").stdout
    assert [task["id"] for task in json.loads(as_json)] == ["task-1", "task-2"]


def test_a_task_is_added(host: ContractServer, tmp_path: Path) -> None:
    host.answers["POST", "/task"] = (201, TASK)
    added = tasks(host, tmp_path, "add", "Look", "--every", "15m", "--conversation", "main", "--group")
    assert "Added task-1; next run Sun 2027-01-31 10:30 CET." in added.stdout
    assert host.requests[0][2] == {
        "prompt": "Look",
        "schedule_type": "interval",
        "schedule_value": "900000",
        "context_mode": "group",
        "conversation_id": "main",
        "catch_up": "once",
    }


def test_a_task_is_added_with_an_end(host: ContractServer, tmp_path: Path) -> None:
    host.answers["POST", "/task"] = (201, TASK)
    options = ("--ends-at", "2027-12-31", "--max-runs", "3", "--deliver", "none", "--run-if-past")
    tasks(host, tmp_path, "add", "Look", "--at", "2027-03-01", *options)
    assert host.requests[0][2] == {
        "prompt": "Look",
        "schedule_type": "once",
        "schedule_value": "2027-03-01",
        "context_mode": "isolated",
        "catch_up": "once",
        "deliver": "none",
        "ends_at": "2027-12-31",
        "max_runs": 3,
        "run_if_past": True,
    }


def test_ends_and_overdue_tasks_are_seen_in_the_list(host: ContractServer, tmp_path: Path) -> None:
    bounds = {"overdue": True, "runs_begun": 1, "max_runs": 3, "ends_at": "2027-12-31T22:59:00.000Z"}
    host.answers["GET", "/tasks"] = (200, {"tasks": [TASK | bounds], "next_cursor": None})
    listed = " ".join(tasks(host, tmp_path, "list").stdout.split())
    for seen in ("overdue", "1 of 3 runs", "until"):
        assert seen in listed


@pytest.mark.parametrize(
    "options", [(), ("--every", "15m", "--cron", "@daily"), ("--every", "15 minutes"), ("--every", "m")]
)
def test_a_schedule_that_is_none_is_a_sentence(
    host: ContractServer, tmp_path: Path, options: tuple[str, ...]
) -> None:
    refused = tasks(host, tmp_path, "add", "Look", *options)
    assert refused.returncode == 2
    assert refused.stderr.startswith("picoclaw: ")
    assert host.requests == []


def test_the_next_five_slots_are_explained_without_a_host(tmp_path: Path) -> None:
    arguments = ("tasks", "add", "Look", "--cron", "0 9 * * MON", "--timezone", "UTC", "--explain")
    said = picoclaw(tmp_path, *arguments, TZ="UTC").stdout.splitlines()
    assert len(said) == 5
    assert all(line.startswith("Mon ") and line.endswith("09:00 UTC") for line in said)
    refused = picoclaw(tmp_path, "tasks", "add", "x", "--cron", "61 * * * *", "--explain")
    assert refused.returncode == 2
    assert "minute" in refused.stderr


def test_no_run_is_explained_that_the_task_would_not_have(tmp_path: Path) -> None:
    def explained(*arguments: str) -> subprocess.CompletedProcess[str]:
        return picoclaw(tmp_path, "tasks", "add", "Look", *arguments, "--explain", "--json", TZ="UTC")

    assert len(json.loads(explained("--cron", "@daily", "--max-runs", "2").stdout)) == 2
    end = (datetime.now(UTC) + timedelta(days=3)).isoformat()
    assert len(json.loads(explained("--cron", "@daily", "--ends-at", end).stdout)) == 3
    past = explained("--at", "2020-01-01")
    assert (past.returncode, "is past" in past.stderr) == (2, True)
    (now,) = json.loads(explained("--at", "2020-01-01", "--run-if-past").stdout)
    assert now > "2026"


def test_pausing_and_resuming_set_the_status(host: ContractServer, tmp_path: Path) -> None:
    host.answers["PUT", "/task/task-1"] = (200, TASK | {"status": "paused", "next_run": None})
    assert "task-1 is paused; next run -." in tasks(host, tmp_path, "pause", "task-1").stdout
    tasks(host, tmp_path, "resume", "task-1")
    assert [body for _, _, body in host.requests] == [{"status": "paused"}, {"status": "active"}]


def test_running_a_task_shows_its_outcome(host: ContractServer, tmp_path: Path) -> None:
    outcome = {"status": "success", "result": "All [red]quiet", "outbound_messages": [{"text": "ping"}]}
    host.answers["POST", "/task/trigger"] = (200, outcome)
    ran = tasks(host, tmp_path, "run", "task-1")
    assert ran.stdout == "message: ping\nAll [red]quiet\n"
    host.answers["POST", "/task/trigger"] = (200, {"status": "error", "error": "The model is down"})
    failed = tasks(host, tmp_path, "run", "task-1")
    assert (failed.returncode, failed.stdout) == (1, "The model is down\n")


def test_a_task_is_deleted_by_its_very_id(host: ContractServer, tmp_path: Path) -> None:
    host.answers["DELETE", "/task/a%2Fb"] = (204, None)
    assert tasks(host, tmp_path, "rm", "a/b").stdout == "Deleted a/b.\n"
    missing = tasks(host, tmp_path, "rm", "nope")
    assert (missing.returncode, missing.stderr) == (1, "picoclaw: Not found\n")


def test_the_log_shows_how_runs_went(host: ContractServer, tmp_path: Path) -> None:
    ran = {
        "status": "error",
        "started_at": "2027-01-31T09:30:00.000Z",
        "duration_ms": 1250,
        "error": "No\nanswer",
    }
    host.answers["GET", "/task/task-1/runs"] = (200, {"runs": [ran], "next_cursor": None})
    log = tasks(host, tmp_path, "log", "task-1").stdout
    for seen in ("Sun 2027-01-31 10:30 CET", "error", "1.2s", "No answer"):
        assert seen in log

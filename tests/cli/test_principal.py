"""``picoclaw principal`` against a real host: from its making to the proof that it is gone."""

from __future__ import annotations

import json
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.cli.running import picoclaw
from tests.running import TOKEN, HostProcess, running_host

WEAK = {"PICOCLAW_PRINCIPALS_ISOLATION": "weak"}


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    with running_host(tmp_path_factory.mktemp("host"), None, WEAK) as host:
        yield host


@pytest.fixture
def principal(host: HostProcess, tmp_path: Path) -> Any:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return picoclaw(tmp_path, "principal", *arguments, API_TOKEN=TOKEN, PICOCLAW_URL=host.url)

    return run


def made(principal: Any, name: str, *options: str) -> str:
    answer = principal("create", name, *options)
    assert answer.returncode == 0, answer.stderr
    return str(answer.stdout.strip())


def test_a_principal_is_made_with_limits_and_shown_with_what_it_used(
    host: HostProcess, principal: Any
) -> None:
    terms = '{"models": ["offline"], "rate_limits": {"messages_per_minute": 9}}'
    options = ("--scope", "chat", "--scope", "files", "--day-tokens", "100000", "--terms", terms)
    ann = made(principal, "Ann", *options)
    shown = json.loads(principal("show", ann, "--json").stdout)
    assert shown["scopes"] == ["chat", "files"]
    assert shown["budgets"]["day"]["tokens"] == 100_000
    assert (shown["models"], shown["rate_limits"]["messages_per_minute"]) == (["offline"], 9)
    text = principal("token", ann, "--name", "laptop", "--expires", "12h").stdout.strip()
    with host.client(text) as client:
        me = client.get("/me").json()
    assert me["principal_id"] == ann
    assert shown["used"]["conversations"] == 1
    assert ann in principal("list").stdout
    assert "100000" in principal("show", ann).stdout


def test_limits_of_a_day_are_those_of_the_terms_and_of_the_options(principal: Any) -> None:
    terms = '{"name": "Bob", "budgets": {"run": {"tokens": 5}, "day": {"tokens": 7}}}'
    shown = json.loads(
        principal("show", made(principal, "Ann", "--day-dollars", "3", "--terms", terms), "--json").stdout
    )
    assert (shown["name"], shown["budgets"]["run"]["tokens"]) == ("Ann", 5)
    assert (shown["budgets"]["day"]["tokens"], shown["budgets"]["day"]["dollars"]) == (7, 3)
    made(principal, "Ann", "--day-tokens", "3", "--terms", '{"budgets": null}')
    refused = principal("create", "Ann", "--day-tokens", "3", "--terms", '{"budgets": {"day": 5}}')
    assert (refused.returncode, "day must be an object" in refused.stderr) == (2, True)


def test_who_is_suspended_is_refused_until_it_is_resumed(host: HostProcess, principal: Any) -> None:
    ann = made(principal, "Ann")
    with host.client(principal("token", ann).stdout.strip()) as client:
        principal("suspend", ann)
        assert (client.get("/me").status_code, client.get("/me").json()["code"]) == (403, "suspended")
        principal("resume", ann)
        assert client.get("/me").status_code == 200


def test_what_is_exported_is_all_that_a_principal_has(
    host: HostProcess, principal: Any, tmp_path: Path
) -> None:
    ann, bob = made(principal, "Ann"), made(principal, "Bob")
    for who, secret in ((ann, "plums"), (bob, "pears")):
        with host.client(principal("token", who).stdout.strip()) as client:
            assert (
                client.post("/chat", json={"message": f"write {secret} to {secret}.txt"}).status_code == 200
            )
            daily = {"id": "daily", "prompt": "hello", "schedule_type": "cron", "schedule_value": "@daily"}
            assert client.post("/task", json=daily).status_code == 201
            assert client.post("/task/trigger", json={"task_id": "daily"}).status_code == 200
    file = tmp_path / "ann.tar.gz"
    assert principal("export", ann, str(file)).returncode == 0
    assert file.stat().st_mode & 0o777 == 0o600
    with tarfile.open(file) as archive:
        names = archive.getnames()
        texts = "".join(archive.extractfile(each).read().decode() for each in archive if each.isfile())  # type: ignore[union-attr]
    kinds = (
        "principal",
        "conversations",
        "tasks",
        "runs",
        "approvals",
        "webhooks",
        "usage",
        "audit",
        "tokens",
    )
    assert {"files/plums.txt", *(f"{kind}.json" for kind in kinds)} <= {*names}
    assert "plums" in texts
    with tarfile.open(file) as archive:
        runs = archive.extractfile(f"task_runs/{ann}+daily.json")
        assert runs is not None
        assert '"trigger":"manual"' in runs.read().decode()
    assert "pears" not in texts
    assert principal("export", ann, "-").returncode == 2
    again = principal("export", ann, str(file))
    assert (again.returncode, "File exists" in again.stderr) == (1, True)


class DiesSoon(BaseHTTPRequestHandler):
    """A host that tells of the principal and is gone before it has told the rest."""

    def do_GET(self) -> None:
        told = self.path.startswith("/principals/")
        self.send_response(200 if told else 503)
        self.end_headers()
        self.wfile.write(b'{"id": "prin-ann"}' if told else b"")

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_an_export_that_breaks_off_leaves_no_archive(tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), DiesSoon) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        extra = {"API_TOKEN": TOKEN, "PICOCLAW_URL": f"http://127.0.0.1:{server.server_port}"}
        broken = picoclaw(tmp_path, "principal", "export", "prin-ann", str(tmp_path / "ann.tar.gz"), **extra)
        server.shutdown()
    assert broken.returncode == 1
    assert not (tmp_path / "ann.tar.gz").exists()


def test_a_deletion_is_proved_place_by_place(host: HostProcess, principal: Any) -> None:
    ann = made(principal, "Ann")
    with host.client(principal("token", ann).stdout.strip()) as client:
        assert client.post("/chat", json={"message": "write plums to plums.txt"}).status_code == 200
    with host.client() as client:
        before = client.get(f"/principals/{ann}/remains").json()["places"]
    found = {each["place"] for each in before if each["found"]}
    assert {"rows of conversations", "rows of messages", "rows of runs", "rows of tokens"} <= found
    assert any(place.startswith("directory ") for place in found)
    proof = principal("delete", ann, "--prove")
    assert proof.returncode == 0, proof.stdout
    for place in (each["place"] for each in before):
        assert " ".join(place.split()) in " ".join(proof.stdout.split())
    assert "1 found" not in proof.stdout
    assert principal("show", ann).returncode == 1


@pytest.mark.parametrize("wrong", ["[]", "{", "7"])
def test_limits_that_are_no_object_are_refused(principal: Any, wrong: str) -> None:
    refused = principal("create", "Ann", "--terms", wrong)
    assert refused.returncode == 2
    assert "--terms takes a JSON object" in refused.stderr

"""Kills between asking, answering, effect and result: no question is lost, and no call is made twice."""

from __future__ import annotations

import contextlib
import random
import threading
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.http.conftest import configure
from tests.running import HostProcess, directive, new_host, running_model, until

KILLS, KILLS_SLOW = 8, 200
RULES = [{"tool": "append_file", "do": "ask"}]


def test_each_question_stays_and_each_call_is_made_at_most_once(tmp_path: Path) -> None:
    _torment(tmp_path, KILLS, random.Random(11))


@pytest.mark.slow
def test_each_question_stays_and_each_call_is_made_at_most_once_in_two_hundred_kills(tmp_path: Path) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    _torment(tmp_path, KILLS_SLOW, random.Random(seed))


def _torment(root: Path, kills: int, chance: random.Random) -> None:
    asked: dict[str, str] = {}
    allowed: set[str] = set()
    with running_model() as model:
        host = configure(new_host(root / "host", model.url, {"LEASE_MS": "1000"}), permissions=RULES)
        try:
            for number in range(kills):
                host.start()
                _live(host, number, asked, allowed, chance)
                host.kill()
            host.start()
            _settle(host, asked, allowed)
        finally:
            if host.process is not None and host.process.poll() is None:
                host.kill()


def _live(
    host: HostProcess, number: int, asked: dict[str, str], allowed: set[str], chance: random.Random
) -> None:
    """Ask and answer for some time; the host is killed then, each second time not before it asked."""
    told, ended = threading.Event(), threading.Event()

    def talk() -> None:
        with contextlib.suppress(httpx2.HTTPError, KeyError), host.client() as client:
            _check(client, asked)
            asked[_ask(client, f"effect-{number}")["requests"][0]["id"]] = f"effect-{number}"
            told.set()
            for approval in list(asked):
                if chance.random() < 0.7:
                    _allow(client, approval, allowed)
            ended.wait(1)

    thread = threading.Thread(target=talk, daemon=True)
    thread.start()
    if number % 2:
        told.wait(60)
    thread.join(chance.choice([0.05, 0.2, 0.4, 0.8]) + chance.uniform(0, 0.2))
    ended.set()


def _ask(client: httpx2.Client, name: str) -> dict[str, Any]:
    call = {"name": "append_file", "input": {"path": f"{name}.txt", "content": "x"}}
    steps = [{"tools": [call]}, {"text": "done"}]
    told: dict[str, Any] = client.post("/chat", json={"message": directive(steps=steps)}).json()
    return told


def _allow(client: httpx2.Client, approval: str, allowed: set[str]) -> None:
    shown = client.get(f"/approvals/{approval}").json()
    if shown["status"] == "pending":
        body = {"decision": "allow", "input_sha256": shown["input_sha256"]}
        if client.post(f"/approvals/{approval}", json=body).status_code == 200:
            allowed.add(approval)


def _check(client: httpx2.Client, asked: dict[str, str]) -> None:
    for approval in asked:
        assert client.get(f"/approvals/{approval}").status_code == 200, f"{approval} is lost"


def _settle(host: HostProcess, asked: dict[str, str], allowed: set[str]) -> None:
    """Answer all that waits; then each call was made once, or its request says that nobody can know."""
    files = Path(host.environment["MEMORY_DIR"])
    with host.client() as client:
        _check(client, asked)
        for approval in asked:
            _allow(client, approval, allowed)
        for approval, name in asked.items():
            until(lambda: client.get(f"/approvals/{approval}").json()["status"] in ("done", "interrupted"))  # noqa: B023
            status = client.get(f"/approvals/{approval}").json()["status"]
            path = files / f"{name}.txt"
            made = path.read_text() if path.exists() else ""
            assert made == "x" if status == "done" else made in ("", "x"), (status, made)
    assert asked

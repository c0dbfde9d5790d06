"""Calls that wait for a person, on three hosts: asked at one, answered at another, made at most once by any.

``make chaos-cluster`` kills hosts two hundred times between asking, answering, effect and result.
"""

from __future__ import annotations

import contextlib
import random
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import httpx2
import pytest

from tests.cluster.conftest import Join
from tests.running import HostProcess, directive, until

KILLS: Final = 200
TALKERS: Final = 3
ASK: Final = [{"tool": "exec", "do": "ask"}]
EFFECT: Final = "echo x >> {}"
HANGS: Final = "echo x >> {}; sleep 600"


@pytest.fixture
def hosts(join: Join) -> list[HostProcess]:
    made = [join(wait=False) for _ in range(3)]
    for host in made:
        host.wait_ready()
    return made


def ask(host: HostProcess, name: str, command: str = EFFECT) -> dict[str, Any]:
    """Return the request of a call that leaves a mark in a file, once it waits."""
    call = {"name": "exec", "input": {"command": command.format(name)}}
    message = directive(steps=[{"tools": [call]}, {"text": "done"}])
    with host.client() as client:
        told = client.post("/chat", json={"message": message, "permissions": ASK}).json()
    request: dict[str, Any] = told["requests"][0]
    return request


def allow(host: HostProcess, request: dict[str, Any]) -> int:
    body = {"decision": "allow", "input_sha256": request["input_sha256"]}
    with host.client() as client:
        return client.post(f"/approvals/{request['id']}", json=body).status_code


def shown(host: HostProcess, request: dict[str, Any]) -> dict[str, Any]:
    with host.client() as client:
        found: dict[str, Any] = client.get(f"/approvals/{request['id']}").json()
    return found


def marks(hosts: list[HostProcess], name: str) -> list[int]:
    """Return how often the call was made on each host."""
    files = [Path(host.environment["MEMORY_DIR"]) / name for host in hosts]
    return [file.read_text().count("x") if file.exists() else 0 for file in files]


def test_a_question_outlives_the_host_that_asked_and_of_twenty_answers_at_two_others_one_counts(
    hosts: list[HostProcess],
) -> None:
    request = ask(hosts[0], "raced")
    hosts[0].kill()
    with ThreadPoolExecutor(20) as threads:
        answers = list(threads.map(lambda number: allow(hosts[1 + number % 2], request), range(20)))
    assert sorted(answers) == [200, *[409] * 19]
    until(lambda: shown(hosts[1], request)["status"] == "done")
    assert sum(marks(hosts, "raced")) == 1
    with hosts[2].client() as client:
        run_id = shown(hosts[2], request)["next_run_id"]
        until(lambda: client.get(f"/runs/{run_id}").json()["status"] == "success")


def test_an_answer_outlives_the_host_that_took_it(hosts: list[HostProcess]) -> None:
    request = ask(hosts[0], "taken")
    assert allow(hosts[1], request) == 200
    hosts[1].kill()
    until(lambda: shown(hosts[2], request)["status"] in ("done", "interrupted"))
    status, made = shown(hosts[2], request)["status"], sum(marks(hosts, "taken"))
    assert made == 1 if status == "done" else made <= 1, (status, made)


def test_a_call_whose_host_dies_in_the_middle_is_not_made_again_and_says_so(
    hosts: list[HostProcess],
) -> None:
    request = ask(hosts[0], "middle", HANGS)
    assert allow(hosts[1], request) == 200
    until(lambda: sum(marks(hosts, "middle")))
    hosts[marks(hosts, "middle").index(1)].kill()
    alive = next(host for host in hosts if host.process is not None and host.process.poll() is None)
    until(lambda: shown(alive, request)["status"] == "interrupted")
    with alive.client() as client:
        run = client.get(f"/runs/{shown(alive, request)['next_run_id']}").json()
        assert (run["status"], run["code"]) == ("error", "interrupted")
        body = {"message": "and now?", "conversation_id": run["conversation_id"]}
        assert client.post("/chat", json=body).json()["result"] == "echo: and now?"
    assert sum(marks(hosts, "middle")) == 1


@pytest.mark.slow
def test_two_hundred_kills_lose_no_question_and_make_no_call_twice(hosts: list[HostProcess]) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    chance, over, asked = random.Random(seed), threading.Event(), dict[str, str]()
    talkers = [
        threading.Thread(target=_talk, args=(hosts, asked, over, random.Random(seed + number), number))
        for number in range(TALKERS)
    ]
    for thread in talkers:
        thread.start()
    for _ in range(KILLS):
        over.wait(chance.uniform(0.05, 1.2))
        host = chance.choice(hosts)
        host.kill()
        host.start()
    over.set()
    for thread in talkers:
        thread.join(60)
    ended = _settled(hosts, asked)
    print(f"{len(asked)} calls: {dict(ended)}")
    assert ended["done"] > KILLS / 4


def _talk(
    hosts: list[HostProcess],
    asked: dict[str, str],
    over: threading.Event,
    chance: random.Random,
    talker: int,
) -> None:
    """Ask at any host, and allow at any host, whatever becomes of them."""
    number = 0
    while not over.wait(0.05):
        number += 1
        with contextlib.suppress(httpx2.HTTPError, KeyError, ValueError):
            name = f"effect-{talker}-{number}"
            request = ask(chance.choice(hosts), name)
            asked[request["id"]] = name
            if chance.random() < 0.8:
                allow(chance.choice(hosts), request)


def _settled(hosts: list[HostProcess], asked: dict[str, str]) -> Counter[str]:
    """Allow what still waits; return how all calls ended, each of which was made at most once."""
    host, ended = hosts[0], Counter[str]()
    for approval_id, name in asked.items():
        request = shown(host, {"id": approval_id})
        assert request.get("id") == approval_id, f"{approval_id} is lost"
        if request["status"] == "pending":
            assert allow(host, request) == 200
        until(lambda: shown(host, request)["status"] in ("done", "interrupted"))  # noqa: B023
        status, made = shown(host, request)["status"], sum(marks(hosts, name))
        assert made == 1 if status == "done" else made <= 1, (approval_id, status, made)
        ended[status] += 1
    return ended

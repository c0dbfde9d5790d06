"""Any host serves any request: hosts on one database, talked to over HTTP."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from tests.cluster.conftest import Join
from tests.running import HostProcess, directive, frames, stream, until

SLOW = directive(text="a b c d e f g h", deltas=[f"{word} " for word in "abcdefgh"], delta_delay_ms=250)
ENDLESS = directive(text="never", hang=True)
DUE = {"schedule_type": "once", "schedule_value": "2020-01-01T00:00:00", "run_if_past": True}


@pytest.fixture
def hosts(join: Join) -> list[HostProcess]:
    first, second = join(wait=False), join(wait=False)
    # Both at once on an empty database: one migrates, the other waits for it.
    first.wait_ready()
    second.wait_ready()
    return [first, second]


@pytest.fixture
def clients(hosts: list[HostProcess]) -> Iterator[list[httpx2.Client]]:
    with hosts[0].client() as first, hosts[1].client() as second:
        yield [first, second]


def begun(client: httpx2.Client, message: str, **headers: str) -> tuple[threading.Thread, dict[str, Any]]:
    """Start a run in a thread; return what it knows once the run has begun."""
    known: dict[str, Any] = {}
    started = threading.Event()

    def talk() -> None:
        body = {"message": message, "stream": True}
        # The host may be killed under it.
        with (
            contextlib.suppress(httpx2.TransportError),
            client.stream("POST", "/chat", json=body, headers=headers) as response,
        ):
            for number, name, data in frames(response.iter_lines()):
                known.setdefault("events", []).append((number, name, data))
                known.update(data if name == "start" else {})
                started.set()

    thread = threading.Thread(target=talk, daemon=True)
    thread.start()
    assert started.wait(60)
    return thread, known


def test_a_conversation_goes_on_on_any_host(clients: list[httpx2.Client]) -> None:
    first, second = clients
    conversation = first.post("/chat", json={"message": "one"}).json()["conversation_id"]
    answer = second.post("/chat", json={"message": "two", "conversation_id": conversation}).json()
    assert answer["status"] == "success"
    texts = [each["content"] for each in first.get(f"/chat/{conversation}/messages").json()["messages"]]
    assert texts[0::2] == ["one", "two"]


def test_a_stream_begun_on_one_host_is_resumed_on_another(clients: list[httpx2.Client]) -> None:
    first, second = clients
    thread, known = begun(first, SLOW)
    path = f"/chat/{known['conversation_id']}/runs/{known['run_id']}/events"
    with second.stream("GET", path, headers={"Last-Event-ID": "1"}) as response:
        heard = list(frames(response.iter_lines()))
    thread.join(60)
    assert heard == known["events"][1:]
    assert heard[-1][1] == "done"


def test_a_stream_of_what_is_deleted_elsewhere_ends(clients: list[httpx2.Client]) -> None:
    first, second = clients
    thread, known = begun(first, ENDLESS)
    path = f"/chat/{known['conversation_id']}"
    with second.stream("GET", f"{path}/runs/{known['run_id']}/events") as response:
        first.post(f"{path}/cancel")
        thread.join(60)
        until(lambda: first.delete(path).status_code == 204)
        told = [line for line in response.iter_lines() if line.startswith("event: ")]
    assert told[-1] in ("event: done", "event: error")


def test_a_conversation_that_runs_elsewhere_is_busy_and_cannot_be_deleted(
    clients: list[httpx2.Client],
) -> None:
    first, second = clients
    thread, known = begun(first, ENDLESS)
    conversation = known["conversation_id"]
    refused = second.post("/chat", json={"message": "x", "conversation_id": conversation})
    assert (refused.status_code, refused.json()["code"]) == (409, "conversation_busy")
    assert second.delete(f"/chat/{conversation}").status_code == 409
    assert second.get(f"/chat/{conversation}").json()["status"] == "running"
    second.post(f"/chat/{conversation}/cancel")
    thread.join(60)
    assert second.delete(f"/chat/{conversation}").status_code == 204
    assert first.get(f"/chat/{conversation}").status_code == 404


def test_a_run_is_cancelled_by_any_host(clients: list[httpx2.Client]) -> None:
    first, second = clients
    thread, known = begun(first, ENDLESS)
    answer = second.post(f"/chat/{known['conversation_id']}/cancel")
    assert (answer.status_code, answer.json()["run_id"]) == (202, known["run_id"])
    thread.join(60)
    assert known["events"][-1][2]["code"] == "cancelled"
    assert second.post(f"/chat/{known['conversation_id']}/cancel").status_code == 409


def test_of_requests_at_once_on_two_hosts_one_gets_the_conversation(clients: list[httpx2.Client]) -> None:
    conversation = clients[0].post("/chat", json={"message": "hi"}).json()["conversation_id"]
    body = {"message": directive(text="ok", delay_ms=1500), "conversation_id": conversation}
    statuses: list[int] = []
    threads = [
        threading.Thread(
            target=lambda number: statuses.append(clients[number % 2].post("/chat", json=body).status_code),
            args=(number,),
        )
        for number in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(statuses) == [200, 409, 409, 409, 409, 409]


def test_a_key_stands_for_one_run_on_all_hosts(clients: list[httpx2.Client]) -> None:
    body = {"message": directive(text="once", delay_ms=700)}
    answers: list[dict[str, Any]] = []

    def ask(client: httpx2.Client) -> None:
        answers.append(client.post("/chat", json=body, headers={"Idempotency-Key": "k-1"}).json())

    threads = [threading.Thread(target=ask, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len({answer["run_id"] for answer in answers}) == 1
    assert [answer["result"] for answer in answers] == ["once", "once"]


def test_due_tasks_run_once_whoever_looks_for_them(clients: list[httpx2.Client]) -> None:
    made = [
        clients[number % 2].post("/task", json={"prompt": f"task {number}", **DUE}).json()["id"]
        for number in range(12)
    ]

    def check(client: httpx2.Client) -> None:
        while client.post("/task/check").json().get("executed"):
            pass

    threads = [threading.Thread(target=check, args=(client,)) for client in clients for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for task_id in made:
        runs = clients[0].get(f"/task/{task_id}/runs").json()["runs"]
        assert [(run["status"], run["attempt"]) for run in runs] == [("success", 1)]


def test_a_dead_hosts_run_ends_and_whoever_follows_it_elsewhere_is_told(
    hosts: list[HostProcess], clients: list[httpx2.Client]
) -> None:
    _, known = begun(clients[0], ENDLESS)
    path = f"/chat/{known['conversation_id']}/runs/{known['run_id']}/events"
    with clients[1].stream("GET", path) as response:
        hosts[0].kill()
        heard = list(frames(response.iter_lines()))
    assert [name for _, name, _ in heard][-2:] == ["error", "done"]
    body = {"message": "again", "conversation_id": known["conversation_id"]}
    assert clients[1].post("/chat", json=body).status_code == 200


def test_a_host_that_slept_through_its_lease_writes_nothing(
    hosts: list[HostProcess], clients: list[httpx2.Client]
) -> None:
    thread, known = begun(clients[0], SLOW)
    conversation = known["conversation_id"]
    hosts[0].signal_all(signal.SIGSTOP)
    until(lambda: clients[1].get(f"/chat/{conversation}").json()["status"] == "idle")
    list(stream(clients[1], {"message": "meanwhile", "conversation_id": conversation}))
    before = clients[1].get(f"/chat/{conversation}/messages").json()
    hosts[0].signal_all(signal.SIGCONT)
    thread.join(60)
    assert clients[1].get(f"/chat/{conversation}/messages").json() == before
    assert [name for _, name, _ in known["events"]][-2:] == ["error", "done"]
    assert known["events"][-1][2]["code"] == "lease_lost"
    assert clients[0].post("/chat", json={"message": "back"}).status_code == 200


def test_a_dead_hosts_task_is_run_by_another(hosts: list[HostProcess], clients: list[httpx2.Client]) -> None:
    task = clients[0].post("/task", json={"prompt": directive(text="ran", delay_ms=1500), **DUE}).json()["id"]

    def check() -> None:
        with pytest.raises(httpx2.TransportError):
            clients[0].post("/task/check")

    thread = threading.Thread(target=check)
    thread.start()
    until(lambda: clients[1].get(f"/task/{task}/runs").json()["runs"])
    hosts[0].kill()
    thread.join(60)
    until(lambda: clients[1].post("/task/check").json().get("executed"))
    runs = clients[1].get(f"/task/{task}/runs").json()["runs"]
    assert [(run["status"], run["attempt"]) for run in runs] == [("success", 2)]


def test_a_dead_hosts_task_is_taken_over_though_nobody_looks_and_nothing_else_is_due(join: Join) -> None:
    first = join({"SCHEDULER": "internal"})
    with first.client() as client:
        task = client.post("/task", json={"prompt": directive(text="ran", delay_ms=9000), **DUE}).json()["id"]
        until(lambda: client.get(f"/task/{task}/runs").json()["runs"])
    second = join({"SCHEDULER": "internal"})
    first.kill()
    with second.client() as client:
        until(lambda: client.get(f"/task/{task}/runs").json()["runs"][0]["attempt"] == 2, within_s=40)

"""The database goes away and comes back: clear answers, no lost word, and nobody has to help."""

from __future__ import annotations

import sys
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest

from shared.errors import Unavailable
from shared.store.postgres.database import Place
from shared.store.postgres.opening import open_shared_store
from tests.cluster.server import Server, running_server
from tests.contract.store.making import T0, a_run
from tests.running import HostProcess, ModelProcess, directive, new_host, until

SLOW = directive(
    steps=[
        {"tools": [{"name": "exec", "input": {"command": "echo one"}}], "delay_ms": 300},
        {"text": "finished", "delay_ms": 4000},
    ]
)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    # Not below pytest's directory, which the server's user may not enter.
    with tempfile.TemporaryDirectory(prefix="postgres-for-tests-") as directory:
        Path(directory).chmod(0o755)
        with running_server(Path(directory) / "server") as running:
            yield running


@pytest.fixture
def host(server: Server, model: ModelProcess, tmp_path: Path) -> Iterator[HostProcess]:
    process = new_host(tmp_path / "host", model.url, {"DATABASE_URL": server.url, "LEASE_MS": "20000"})
    yield process.start()
    process.kill()


def test_without_the_database_the_host_says_so_and_recovers_by_itself(
    server: Server, host: HostProcess
) -> None:
    with host.client() as client:
        conversation = client.post("/chat", json={"message": "before"}).json()["conversation_id"]
        server.stop()
        until(lambda: client.get("/ready").status_code == 503)
        health = client.get("/health").json()
        assert (health["status"], health["database"]["ok"]) == ("degraded", False)
        refused = client.post("/chat", json={"message": "during", "conversation_id": conversation})
        assert refused.status_code == 503
        assert "database" in refused.json()["error"]
        assert refused.headers["Retry-After"]
        assert client.get(f"/chat/{conversation}").status_code == 503
        until(lambda: "The background waits for the store" in host.log_text)
        server.start()
        until(lambda: client.get("/ready").status_code == 200)
        assert client.get("/health").json()["status"] == "ok"
        answer = client.post("/chat", json={"message": "after", "conversation_id": conversation})
        assert answer.status_code == 200
        said = client.get(f"/chat/{conversation}/messages").json()["messages"]
        assert [each["content"] for each in said][0::2] == ["before", "after"]
        until(lambda: "The background goes on" in host.log_text, within_s=120)
        assert "Traceback" not in host.log_text


def test_a_run_in_flight_outlasts_a_crash_of_the_database(server: Server, host: HostProcess) -> None:
    answers: list[dict[str, Any]] = []

    def talk() -> None:
        with host.client() as client:
            answers.append(client.post("/chat", json={"message": SLOW}).json())

    thread = threading.Thread(target=talk)
    thread.start()
    with host.client() as client:
        until(lambda: running(client))
        server.stop()
        until(lambda: client.get("/ready").status_code == 503)
        server.start()
        thread.join(60)
        assert [answer["result"] for answer in answers] == ["finished"], answers
        said = client.get(f"/chat/{answers[0]['conversation_id']}/messages").json()["messages"]
        assert said[-1]["content"] == "finished"


def running(client: httpx2.Client) -> bool:
    listed = client.get("/chat").json()["conversations"]
    return any(entry["status"] == "running" and entry["message_count"] >= 1 for entry in listed)


async def test_a_runs_work_waits_for_the_database_and_a_caller_is_told_soon(server: Server) -> None:
    store = await open_shared_store(Place(server.url))
    try:
        await store.conversations.create("waits", T0)
        await store.runs.begin(a_run("waits", "waits"))
        server.stop()
        works: dict[str, Callable[[str], Awaitable[Any]]] = {
            "history": store.conversations.history,
            "latest": store.compactions.latest,
            "unarchived": store.compactions.unarchived,
            "ask": lambda name: store.outbound.add(name, name, "May I?", "assistant", T0, patiently=True),
        }
        done: dict[str, Any] = {}

        async def note(name: str) -> None:
            done[name] = await works[name]("waits")

        async with anyio.create_task_group() as tasks:
            for name in works:
                tasks.start_soon(note, name)
            for _ in range(2):
                with pytest.raises(Unavailable):
                    await store.conversations.get("waits")
            await anyio.to_thread.run_sync(server.start)
        (message,) = done.pop("history")
        assert message.role == "user"
        assert done.pop("ask").text == "May I?"
        assert done == {"latest": None, "unarchived": []}
        assert [each.text for each in await store.outbound.said_by("waits", after=0)] == ["May I?"]
    finally:
        await store.close()


def test_every_acknowledged_message_is_there_after_crashes_of_the_database(
    server: Server, host: HostProcess
) -> None:
    told: list[tuple[str, str]] = []
    stop = threading.Event()

    def talk(name: str) -> None:
        with host.client() as client:
            number = 0
            while not stop.is_set():
                number += 1
                answer = client.post("/chat", json={"message": f"{name}-{number}"})
                if answer.status_code == 200 and answer.json()["status"] == "success":
                    told.append((answer.json()["conversation_id"], f"{name}-{number}"))

    threads = [threading.Thread(target=talk, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    with host.client() as client:
        for _ in range(2):
            before = len(told)
            until(lambda before=before: len(told) > before + 5)  # type: ignore[misc]  # mypy infers no default
            server.stop()
            server.start()
            until(lambda: client.get("/ready").status_code == 200)
        before = len(told)
        until(lambda: len(told) > before + 5)
        stop.set()
        for thread in threads:
            thread.join(60)
        for conversation, message in told:
            said = client.get(f"/chat/{conversation}/messages").json()["messages"]
            assert [each["content"] for each in said] == [message, f"echo: {message}"]


SOONER = """
import sys
from shared.store.postgres import database
database.PATIENCE_S = 1.0
sys.argv[1:] = ["serve"]
from host.cli import main
main()
"""


def test_a_run_that_loses_the_database_in_a_call_says_so_and_fails_nowhere_inside(
    server: Server, model: ModelProcess, tmp_path: Path
) -> None:
    host = new_host(tmp_path / "host", model.url, {"DATABASE_URL": server.url})
    host.command = (sys.executable, "-c", SOONER)
    go = tmp_path / "host" / "memory" / "go"
    wait = {"name": "exec", "input": {"command": "touch begun; until [ -e go ]; do sleep 0.1; done"}}
    say = {"name": "mcp__picoclaw__send_message", "input": {"text": "hello"}}
    answers: list[httpx2.Response] = []

    def talk() -> None:
        with host.client() as client:
            answers.append(client.post("/chat", json={"message": directive(tools=[wait, say])}))

    thread = threading.Thread(target=talk)
    try:
        host.start()
        thread.start()
        until(go.with_name("begun").exists)
        server.stop()
        go.touch()
        thread.join(60)
        [answer] = answers
        assert (answer.status_code, "database" in answer.json()["error"]) == (503, True), answer.text
        assert "failed inside the host" not in host.log_text
    finally:
        server.start()
        host.kill()

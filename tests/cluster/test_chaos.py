"""Hosts that die and freeze under load, and a database that crashes: each run once, nothing lost.

``CHAOS_SECONDS`` says how long (15 in the short form), ``make chaos-cluster`` runs it for five minutes.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import anyio
import httpx2
import pytest

from shared.store.postgres.database import Database, Place
from tests.cluster.server import Server, running_server
from tests.running import HostProcess, ModelProcess, directive, new_host

SECONDS: Final = float(os.environ.get("CHAOS_SECONDS", "15"))
HOSTS: Final = 3
CALLERS: Final = 6
LEASE_MS: Final = 4000
SEND: Final = "mcp__picoclaw__send_message"
EVERY_S: Final = (1.0, 4.0)
"""Between two blows."""


@dataclass
class Ledger:
    """What hosts have acknowledged, and what was done to them."""

    messages: list[tuple[str, str]] = field(default_factory=list)
    tasks: list[str] = field(default_factory=list)
    blows: Counter[str] = field(default_factory=Counter)
    refused: Counter[int] = field(default_factory=Counter)


class World:
    """Three hosts, one database, and people who talk to whoever answers."""

    def __init__(self, server: Server, hosts: list[HostProcess], seed: int) -> None:
        self.server = server
        self.hosts = hosts
        self.ledger = Ledger()
        self.over = threading.Event()
        self._random = random.Random(seed)
        self._numbers = iter(range(10**9))
        self._lock = threading.Lock()

    def number(self) -> int:
        with self._lock:
            return next(self._numbers)

    def ask(self, path: str, body: dict[str, Any], key: str) -> dict[str, Any] | None:
        """Ask one host after the other, under one key, until one of them answers."""
        while not self.over.is_set():
            host = self._random.choice(self.hosts)
            with contextlib.suppress(httpx2.TransportError), host.client() as client:
                answer = client.post(path, json=body, headers={"Idempotency-Key": key}, timeout=8)
                if answer.status_code in (200, 201):
                    told: dict[str, Any] = answer.json()
                    return told
                self.ledger.refused[answer.status_code] += 1
            self.over.wait(0.1)
        return None

    def talk(self) -> None:
        while not self.over.is_set():
            text = f"word-{self.number()}"
            answer = self.ask("/chat", {"message": directive(text, text=f"heard {text}")}, text)
            if answer is not None and answer["status"] == "success":
                self.ledger.messages.append((answer["conversation_id"], text))

    def plan(self) -> None:
        """Make tasks that are due at once; each of them says its own name."""
        while not self.over.is_set():
            name = f"task-{self.number()}"
            steps = [{"tools": [{"name": SEND, "input": {"text": name}}]}, {"text": "told them"}]
            body = {
                "id": name,
                "prompt": directive(steps=steps),
                "schedule_type": "once",
                "schedule_value": "2020-01-01T00:00:00",
                "run_if_past": True,
            }
            if self.ask("/task", body, name) is not None:
                self.ledger.tasks.append(name)
            self.over.wait(0.2)

    def strike(self) -> None:
        """Kill or freeze a host every few seconds; crash the database once, half way."""
        began, crashed = time.monotonic(), False
        while time.monotonic() < began + SECONDS:
            self.over.wait(self._random.uniform(*EVERY_S))
            if not crashed and time.monotonic() > began + SECONDS / 2:
                crashed = True
                self.ledger.blows["database"] += 1
                self.server.stop()
                self.server.start()
                continue
            getattr(self, self._random.choice(["kill", "freeze"]))(self._random.choice(self.hosts))
        self.over.set()

    def kill(self, host: HostProcess) -> None:
        self.ledger.blows["kill"] += 1
        host.kill()
        host.start()

    def freeze(self, host: HostProcess) -> None:
        self.ledger.blows["freeze"] += 1
        host.signal_all(signal.SIGSTOP)
        time.sleep(LEASE_MS / 1000 * 1.2)  # longer than its leases: it must find them gone
        host.signal_all(signal.SIGCONT)


@pytest.fixture
def world(model: ModelProcess, tmp_path: Path) -> Iterator[World]:
    with tempfile.TemporaryDirectory(prefix="postgres-for-tests-") as directory:
        # Not below pytest's directory, which the server's user may not enter.
        Path(directory).chmod(0o755)
        with running_server(Path(directory) / "server") as server:
            settings = {
                "DATABASE_URL": server.url,
                "LEASE_MS": str(LEASE_MS),
                "SCHEDULER": "internal",
                "MAX_TASKS_PER_CONVERSATION": "100000",
            }
            hosts = [new_host(tmp_path / f"host-{n}", model.url, settings).start() for n in range(HOSTS)]
            yield World(server, hosts, seed=random.randrange(10**6))
            for host in hosts:
                host.kill()


def test_hosts_die_and_freeze_and_every_run_happens_once(world: World) -> None:
    threads = [threading.Thread(target=world.talk) for _ in range(CALLERS - 2)]
    threads += [threading.Thread(target=world.plan) for _ in range(2)]
    for thread in threads:
        thread.start()
    world.strike()
    for thread in threads:
        thread.join(60)
    ledger, host = world.ledger, world.hosts[0]
    assert len(ledger.messages) > SECONDS / 2, ledger
    assert len(ledger.tasks) > SECONDS / 2, ledger
    with host.client() as client:
        states = settled(client, ledger.tasks)
        check_messages(client, ledger.messages)
        check_tasks(client, ledger.tasks, states, anyio.run(said_by_tasks, world.server.url, ledger.tasks))
        wait_until_nothing_runs(client)
    ended = dict(Counter(states.values()))
    print(f"\n{dict(ledger.blows)}, {len(ledger.messages)} messages, tasks {ended}, {dict(ledger.refused)}")


def settled(client: httpx2.Client, tasks: list[str]) -> dict[str, str]:
    """Wait until nothing is due and nothing runs any more; return how each task stands."""
    states: dict[str, str] = {}

    def all_ended() -> bool:
        for name in tasks:
            if states.get(name, "active") == "active":
                task = client.get(f"/task/{name}").json()
                runs = client.get(f"/task/{name}/runs").json()["runs"]
                waits = task["status"] == "active" and task["attempts"] > 0 and runs[0]["status"] != "running"
                states[name] = "waits" if waits else task["status"]
        return all(state != "active" for state in states.values())

    deadline = time.monotonic() + 60
    while not all_ended():
        assert time.monotonic() < deadline, [name for name, state in states.items() if state == "active"]
        time.sleep(0.2)
    return states


def wait_until_nothing_runs(client: httpx2.Client) -> None:
    """A task that waited for its next try may have begun it just now; a run that nobody serves ends."""
    deadline = time.monotonic() + 60
    while True:
        found = client.get("/chat", params={"include_temporary": "true"}).json()["conversations"]
        running = [each for each in found if each["status"] == "running"]
        if not running:
            return
        assert time.monotonic() < deadline, running
        time.sleep(0.2)


def check_messages(client: httpx2.Client, told: list[tuple[str, str]]) -> None:
    for conversation, text in told:
        said = client.get(f"/chat/{conversation}/messages").json()["messages"]
        assert sum(text in each["content"] and each["role"] == "user" for each in said) == 1
        assert said[-1]["content"] == f"heard {text}"


Told = dict[str, Any]
"""What was said, and the run that said it."""

SAID: Final = """SELECT o.text, o.id AS message, o.created_at AS at, r.id AS run, r.lease_owner, r.code,
    r.created_at AS began_at
    FROM outbound_messages AS o LEFT JOIN runs AS r ON r.conversation_id = o.source_id
    WHERE o.text = ANY($1::text[]) ORDER BY o.seq"""
TOLD: Final = ("message", "at", "run", "lease_owner", "code", "began_at")


async def said_by_tasks(url: str, tasks: list[str]) -> dict[str, list[Told]]:
    """Return what each task said of its own name."""
    database = Database(Place(url, connections=1))
    rows = await database.read(lambda tx: tx.fetch(SAID, tasks))
    await database.close()
    said: dict[str, list[Told]] = {}
    for row in rows:
        said.setdefault(row["text"], []).append({name: row[name] for name in TOLD})
    return said


def check_tasks(
    client: httpx2.Client, tasks: list[str], states: dict[str, str], said: dict[str, list[Told]]
) -> None:
    for name in tasks:
        runs = client.get(f"/task/{name}/runs").json()["runs"]
        assert len({run["due_at"] for run in runs}) == len(runs)
        done = [run for run in runs if run["status"] == "success"]
        # An effect that may have happened is not repeated: never more often than slots were run.
        told = said.get(name, [])
        assert len({each["message"] for each in told}) <= len(runs), (name, told, runs)
        if states[name] == "waits":  # for its next try, which may have come since
            assert len(done) <= 1, (name, runs)
        else:
            assert len(done) == (1 if states[name] == "completed" else 0), (name, states[name], runs)

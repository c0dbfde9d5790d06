"""Whatever happened to a host, every run, conversation and task has a way out through the API."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import httpx2
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from tests.examples import examples
from tests.http.conftest import configure
from tests.running import directive, frames, new_host, running_model

LEASE_MS: Final = 1000
TWO_LEASES_S: Final = 2 * LEASE_MS / 1000
SLACK_S: Final = 20.0
"""What a loaded machine may take to answer beside that."""

APPEND: Final = {"tools": [{"name": "append_file", "input": {"path": "log.txt", "content": "x"}}]}
KINDS: Final[dict[str, dict[str, Any]]] = {
    "answers": {"steps": [APPEND, {"text": "fine"}]},
    "fails": {"steps": [APPEND, {"status": 403, "times": 1, "text": "fine"}]},
    "refused": {"text": "I can't.", "stop_reason": "refusal"},
    "hangs at first": {"text": "fine", "hang_after_deltas": 0, "times": 1},
    "hangs later": {"steps": [APPEND, {"text": "fine", "hang_after_deltas": 0, "times": 1}]},
    "too many steps": {"steps": [APPEND, APPEND, APPEND, {"text": "fine"}]},
}
PICK: Final = st.integers(0, 11)


class WaysOut(RuleBasedStateMachine):
    """Talks to one host that is cut off, killed and stopped; at the end everything must be got out of."""

    model_url = ""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory(prefix="states-")
        self.host = new_host(Path(self.directory.name), self.model_url, {"LEASE_MS": str(LEASE_MS)})
        configure(
            self.host, agents={"defaults": {"max_tool_iterations": 3}}, budgets={"day": {"tokens": 120_000}}
        )
        self.host.start()
        self.conversations: list[str] = []
        self.tasks: list[str] = []
        self.said = 0

    @rule(kind=st.sampled_from(sorted(KINDS)), ms=st.sampled_from([600, 60_000]))
    def say(self, kind: str, ms: int) -> None:
        body = {"message": self._directive(kind), "stream": True, "max_execution_ms": ms}
        with self._client() as client, client.stream("POST", "/chat", json=body) as response:
            # A hanging one is left behind, as a client that goes away leaves it.
            for _, name, data in frames(response.iter_lines()):
                if name == "start":
                    self.conversations.append(data["conversation_id"])
                    if "hangs" in kind and ms > 1000:
                        return

    @precondition(lambda self: self.conversations)
    @rule(pick=PICK)
    def cancel(self, pick: int) -> None:
        with self._client() as client:
            assert client.post(f"/chat/{self._at(pick)}/cancel").status_code in (202, 409)

    @precondition(lambda self: self.conversations)
    @rule(pick=PICK)
    def resume(self, pick: int) -> None:
        self._resume(self._at(pick))

    @rule(kind=st.sampled_from(["answers", "fails"]), once=st.booleans())
    def task(self, kind: str, once: bool) -> None:
        kinds = ("once", "2020-01-01T00:00:00") if once else ("interval", "86400000")
        body = {"prompt": self._directive(kind), "schedule_type": kinds[0], "schedule_value": kinds[1]}
        with self._client() as client:
            made = client.post("/task", json={**body, "run_if_past": once})
            self.tasks.append(made.json()["id"])
            if not once:
                assert client.post("/task/trigger", json={"task_id": self.tasks[-1]}).status_code == 200
            elif kind == "fails":
                threading.Thread(target=self._check, daemon=True).start()

    @rule()
    def kill(self) -> None:
        self.host.kill()
        self.host.start()

    @rule()
    def stand_still(self) -> None:
        self.host.signal_all(signal.SIGSTOP)
        time.sleep(TWO_LEASES_S)
        self.host.signal_all(signal.SIGCONT)
        self.host.wait_ready()

    def teardown(self) -> None:
        try:
            for conversation in self.conversations:
                self._leave(conversation)
            for task in self.tasks:
                self._leave_task(task)
        finally:
            self.host.kill()
            self.directory.cleanup()

    def _leave(self, conversation: str) -> None:
        """End what runs, go on or be told why not, say something, and delete it."""
        with self._client() as client:
            client.post(f"/chat/{conversation}/cancel")
            self._comes_to(lambda: client.get(f"/chat/{conversation}").json()["status"] == "idle")
            run = client.get(f"/chat/{conversation}/runs").json()["runs"][0]
            assert run["status"] != "running"
            answer = self._resume(conversation)
            over = run["status"] == "success" or run["code"] in ("refused", "prompt_too_long")
            assert answer.status_code == (409 if over else 200), (run, answer.text)
            said = client.post("/chat", json={"message": "hello", "conversation_id": conversation})
            assert said.json()["status"] in ("success", "paused"), said.text
            assert client.delete(f"/chat/{conversation}").status_code == 204

    def _leave_task(self, task: str) -> None:
        with self._client() as client:
            self._comes_to(lambda: self._slots(client, task) == 0)
            state = client.get(f"/task/{task}").json()["status"]
            if state in ("active", "failed"):
                told = client.put(
                    f"/task/{task}", json={"status": "paused" if state == "active" else "active"}
                )
                assert told.status_code == 200, told.text
            assert client.post("/task/trigger", json={"task_id": task}).status_code == 200
            assert client.delete(f"/task/{task}").status_code in (200, 204)

    def _slots(self, client: httpx2.Client, task: str) -> int:
        client.post("/task/check", json={})
        return sum(run["status"] == "running" for run in client.get(f"/task/{task}/runs").json()["runs"])

    def _comes_to(self, condition: Any) -> None:
        deadline = time.monotonic() + TWO_LEASES_S + SLACK_S
        while not condition():
            assert time.monotonic() < deadline, "no way out within two leases"
            time.sleep(0.05)

    def _resume(self, conversation: str) -> httpx2.Response:
        with self._client() as client:
            # A model that was to hang in a run that was killed before it asked hangs now.
            body = {"allow_tokens": 1_000_000, "max_execution_ms": 5000}
            answer = client.post(f"/chat/{conversation}/resume", json=body)
            assert answer.status_code == 200 or answer.json()["code"] in ("not_paused", "conversation_busy")
            return answer

    def _check(self) -> None:
        with contextlib.suppress(httpx2.TransportError), self._client() as client:
            client.post("/task/check", json={"max": 5})

    def _directive(self, kind: str) -> str:
        self.said += 1
        return directive(f"{kind} {self.said}", **KINDS[kind])

    def _client(self) -> httpx2.Client:
        return self.host.client()

    def _at(self, pick: int) -> str:
        return self.conversations[pick % len(self.conversations)]


@pytest.fixture(scope="module")
def model_url() -> Iterator[str]:
    with running_model() as model:
        yield model.url


@pytest.mark.processes
@pytest.mark.skipif(
    os.environ.get("PICOCLAW_TEST_ENGINE") == "postgres", reason="needs to be alone on the store"
)
def test_no_state_lacks_a_way_out_within_two_leases(model_url: str) -> None:
    WaysOut.model_url = model_url
    run_state_machine_as_test(
        WaysOut,
        settings=settings(
            max_examples=examples(4),
            stateful_step_count=8,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )

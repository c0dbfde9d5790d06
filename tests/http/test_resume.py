"""POST /chat/{id}/resume goes on after every ending without a final answer, and says why where it can't."""

from __future__ import annotations

import contextlib
import signal
import threading
from typing import Any

import httpx2
import pytest

from tests.http.conftest import MakeHost, alone_on_the_store, configure
from tests.running import HostProcess, ModelProcess, directive, frames, until

WRITE = {"text": "first", "tools": [{"name": "append_file", "input": {"path": "log.txt", "content": "x"}}]}
SLOW_ONCE = {"text": "second", "hang_after_deltas": 0, "times": 1}
REFUSED = {"text": "I can't.", "stop_reason": "refusal"}


def begin(client: httpx2.Client, message: str, **more: Any) -> dict[str, Any]:
    answer = client.post("/chat", json={"message": message, **more})
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def resume(client: httpx2.Client, conversation: str) -> httpx2.Response:
    return client.post(f"/chat/{conversation}/resume", json={})


def goes_on(client: httpx2.Client, conversation: str, result: str) -> None:
    """Go on to the answer, once, without a new message; then there is nothing to go on with."""
    messages = client.get(f"/chat/{conversation}/messages").json()["messages"]
    people = [entry for entry in messages if entry["role"] == "user"]
    answer = resume(client, conversation).json()
    assert (answer["status"], answer["result"]) == ("success", result), answer
    after, before = client.get(f"/chat/{conversation}/runs").json()["runs"][:2]
    assert before["next_run_id"] == after["run_id"] == answer["run_id"]
    assert after["previous_run_id"] == before["run_id"] == answer["previous_run_id"]
    assert before["root_run_id"] == after["root_run_id"] == answer["root_run_id"] == before["run_id"]
    listed = client.get(f"/chat/{conversation}/messages").json()["messages"]
    assert [entry for entry in listed if entry["role"] == "user"] == people
    assert listed[-1]["content"] == result
    done = resume(client, conversation)
    assert (done.status_code, done.json()["code"]) == (409, "not_paused")
    assert "is answered" in done.json()["error"]


def log_of(host: HostProcess) -> str:
    return (host.root / "memory" / "log.txt").read_text()


@pytest.mark.parametrize("steps", [[], [WRITE]], ids=["at the first call", "after a step"])
def test_after_a_model_error(make_host: MakeHost, steps: list[dict[str, Any]]) -> None:
    host = make_host().start()
    failing = {"status": 403, "message": "no credit", "times": 1, "text": "second"}
    with host.client() as client:
        failed = begin(client, directive(steps=[*steps, failing]))
        assert failed["code"] == "model_error"
        goes_on(client, failed["conversation_id"], "second")
        if steps:
            assert log_of(host) == "x"


def test_after_a_timeout(make_host: MakeHost) -> None:
    host = make_host().start()
    with host.client() as client:
        ended = begin(client, directive(**SLOW_ONCE), max_execution_ms=4000)
        assert (ended["status"], ended["code"]) == ("timeout", "timeout")
        goes_on(client, ended["conversation_id"], "second")


def test_after_the_iteration_limit(make_host: MakeHost) -> None:
    host = configure(make_host(), agents={"defaults": {"max_tool_iterations": 1}}).start()
    with host.client() as client:
        ended = begin(client, directive(steps=[WRITE, {"text": "second"}]))
        assert ended["code"] == "iteration_limit"
        goes_on(client, ended["conversation_id"], "second")
        assert log_of(host) == "x"


@pytest.mark.parametrize("steps", [[], [WRITE]], ids=["at the first call", "after a step"])
def test_after_a_cancel(client: httpx2.Client, model: ModelProcess, steps: list[dict[str, Any]]) -> None:
    mark = f"cancelled-{len(steps)}"
    message = directive(mark, steps=[*steps, SLOW_ONCE])
    with client.stream("POST", "/chat", json={"message": message, "stream": True}) as response:
        events = frames(response.iter_lines())
        conversation = next(events)[2]["conversation_id"]
        until(lambda: sum(mark in str(one["body"]) for one in model.requests()) == len(steps) + 1)
        busy = resume(client, conversation)
        assert (busy.status_code, busy.json()["code"]) == (409, "conversation_busy")
        assert client.post(f"/chat/{conversation}/cancel").status_code == 202
        assert list(events)[-1][2]["code"] == "cancelled"
    goes_on(client, conversation, "second")


def test_after_a_shutdown(make_host: MakeHost) -> None:
    host = make_host(settings={"STOP_GRACE_MS": "100"}).start()
    with host.client() as client:
        body = {"message": directive(steps=[WRITE, SLOW_ONCE]), "stream": True, "show_tool_use": True}
        with client.stream("POST", "/chat", json=body) as response:
            events = frames(response.iter_lines())
            conversation = next(events)[2]["conversation_id"]
            assert next(event for event in events if event[1] == "tool_result")
            assert host.process is not None
            host.process.send_signal(signal.SIGTERM)
            assert list(events)[-1][2]["code"] == "shutdown"
    assert host.process.wait(60) == 0
    host.start()
    with host.client() as client:
        goes_on(client, conversation, "second")
        assert log_of(host) == "x"


@alone_on_the_store
@pytest.mark.parametrize("code", ["retryable", "interrupted"])
def test_after_kill_9(make_host: MakeHost, model: ModelProcess, code: str) -> None:
    host = make_host().start()
    command = "echo x >> log.txt; while [ ! -e go ]; do sleep 0.05; done"
    call = {"tools": [{"name": "exec", "input": {"command": command}}]}
    first = {"text": "second", "hang_after_deltas": 0, "times": 1} if code == "retryable" else call
    mark = f"killed-{code}"
    message = directive(mark, steps=[first, {"text": "second"}])
    with host.client() as client, contextlib.suppress(httpx2.TransportError):
        with client.stream("POST", "/chat", json={"message": message, "stream": True}) as response:
            conversation = next(frames(response.iter_lines()))[2]["conversation_id"]
            until(lambda: mark in str(model.requests()))
            if code == "interrupted":
                until((host.root / "memory" / "log.txt").exists)
            host.kill()
    host.start()
    with host.client() as client:
        assert client.get(f"/chat/{conversation}/runs").json()["runs"][0]["code"] == code
        goes_on(client, conversation, "second")
    if code == "interrupted":
        assert log_of(host) == "x\n"


def test_after_a_lost_lease(make_host: MakeHost, model: ModelProcess) -> None:
    host = make_host(settings={"LEASE_MS": "1000"}).start()
    told: list[dict[str, Any]] = []
    message = directive("lost-lease", text="second", hang_after_deltas=0, times=1)

    def talk() -> None:
        with host.client() as client:
            told.append(begin(client, message))

    thread = threading.Thread(target=talk)
    thread.start()
    until(lambda: "lost-lease" in str(model.requests()))
    host.signal_all(signal.SIGSTOP)
    threading.Event().wait(2)
    host.signal_all(signal.SIGCONT)
    thread.join(60)
    assert told[0]["code"] == "lease_lost"
    with host.client() as client:
        goes_on(client, told[0]["conversation_id"], "second")


def test_after_an_isolated_task_failed(make_host: MakeHost) -> None:
    host = make_host().start()
    failing = {"status": 403, "message": "no credit", "times": 1, "text": "second"}
    with host.client() as client:
        body = {"prompt": directive(steps=[WRITE, failing]), "schedule_type": "interval"}
        task = client.post("/task", json={**body, "schedule_value": "86400000"}).json()
        ended = client.post("/task/trigger", json={"task_id": task["id"]}).json()
        assert ended["status"] == "error"
        answer = resume(client, ended["conversation_id"]).json()
        assert (answer["status"], answer["result"]) == ("success", "second")
        assert log_of(host) == "x"


def test_a_refused_turn_and_one_that_is_too_long_say_why_they_do_not_go_on(make_host: MakeHost) -> None:
    host = make_host(settings={"CLAUDE_MODEL": "claude-window-20000"}).start()
    with host.client() as client:
        refused = begin(client, directive(**REFUSED))
        assert refused["code"] == "refused"
        answer = resume(client, refused["conversation_id"])
        assert (answer.status_code, answer.json()["code"]) == (409, "not_paused")
        assert "the model refused its last message" in answer.json()["error"]
        long = begin(client, "word " * 60_000)
        assert long["code"] == "prompt_too_long"
        answer = resume(client, long["conversation_id"])
        assert (answer.status_code, answer.json()["code"]) == (409, "not_paused")
        assert "doesn't fit into the model's window" in answer.json()["error"]
        assert begin(client, "hello", conversation_id=refused["conversation_id"])["status"] == "success"


def test_an_unknown_conversation_and_an_empty_one(make_host: MakeHost) -> None:
    host = make_host().start()
    with host.client() as client:
        assert resume(client, "conv-nobody").status_code == 404
        made = client.get("/chat").json()["conversations"][0]["conversation_id"]
        answer = resume(client, made)
        assert (answer.status_code, answer.json()["code"]) == (409, "not_paused")
        assert "nothing was said in it yet" in answer.json()["error"]

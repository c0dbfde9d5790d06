"""What happens when things break: the model, the client, the host itself."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from tests.http.conftest import MakeHost, alone_on_the_store
from tests.running import HostProcess, ModelProcess, directive, frames, plain_client, stream, until

WRITE_AND_HANG = [
    {"text": "first", "tools": [{"name": "write_file", "input": {"path": "kept.txt", "content": "x"}}]},
    {"text": "second", "hang": True},
]
READ_AND_HANG = [{"tools": [{"name": "list_dir", "input": {}}]}, {"hang": True}]


NO_STEP = """CREATE TRIGGER no_step BEFORE INSERT ON messages WHEN new.role = 'assistant' AND new.text IS NULL
    BEGIN SELECT RAISE(ABORT, 'no step'); END"""
NO_END = """CREATE TRIGGER no_end BEFORE UPDATE OF state ON runs WHEN new.state = 'success'
    BEGIN SELECT RAISE(ABORT, 'no end'); END"""


@contextlib.contextmanager
def local_database(host: HostProcess) -> Iterator[sqlite3.Connection]:
    """The host's database, as another program of the machine sees it."""
    path = host.environment["LOCAL_DB_PATH"]
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA busy_timeout = 5000")
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        yield connection


def chat(client: httpx2.Client, message: str, **more: Any) -> dict[str, Any]:
    answer = client.post("/chat", json={"message": message, **more})
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def asked(model: ModelProcess, text: str) -> int:
    return sum(text in str(request["body"]) for request in model.requests())


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 529, "error_type": "overloaded_error", "retry_after": "0"},
        {"status": 429, "error_type": "rate_limit_error", "retry_after": "0"},
        {"status": 500, "retry_after": "0"},
        {"drop_after_deltas": 1},
        {"truncate_after_deltas": 1},
        {"error_after_deltas": 1, "error_type": "overloaded_error"},
    ],
    ids=lambda fault: next(iter(fault)) + str(next(iter(fault.values()))),
)
def test_a_step_that_fails_once_is_tried_again_and_nothing_is_shown_twice(
    client: httpx2.Client, fault: dict[str, Any]
) -> None:
    message = directive(deltas=["one ", "two ", "three"], times=1, **fault)
    told = list(stream(client, {"message": message}))
    chunks = "".join(data["text"] for _, name, data in told if name == "chunk")
    assert chunks == "one two three"
    assert told[-1][2]["status"] == "success"
    assert told[-1][2]["result"] == chunks


def test_a_request_the_api_refuses_is_not_repeated_and_its_reason_is_told_and_logged_but_not_kept(
    client: httpx2.Client, model: ModelProcess, host: HostProcess
) -> None:
    message = directive("refuse-me", status=400, error_type="invalid_request_error", message="API-SAID-THIS")
    body = chat(client, message)
    assert body["status"] == "error"
    assert body["code"] == "model_error"
    assert body["error"].endswith("(400 invalid_request_error): API-SAID-THIS")
    assert "API-SAID-THIS" in host.log_text
    assert asked(model, "refuse-me") == 1
    listed = client.get(f"/chat/{body['conversation_id']}/messages").json()["messages"]
    assert [entry["role"] for entry in listed] == ["user"]


def test_secrets_in_the_reason_of_a_refusal_are_taken_out(client: httpx2.Client, host: HostProcess) -> None:
    key = host.environment["ANTHROPIC_API_KEY"]
    body = chat(client, directive("refuse-me", status=400, message=f"the key {key} is bad"))
    assert body["error"].endswith("the key [redacted] is bad")
    assert key not in host.log_text


@pytest.mark.parametrize("status", [429, 529])
def test_a_wait_that_the_run_has_no_time_for_ends_it_with_the_models_reason(
    client: httpx2.Client, status: int
) -> None:
    message = directive(status=status, retry_after="600", message="come back later")
    body = chat(client, message, max_execution_ms=60_000)
    assert (body["status"], body["code"]) == ("error", "model_error")
    assert body["error"].endswith("come back later")


def test_a_size_that_only_the_server_knows_is_told_in_its_words_and_without_false_figures(
    client: httpx2.Client,
) -> None:
    body = chat(client, directive(status=413, error_type="request_too_large", message="at most 1 MiB here"))
    assert (body["status"], body["code"]) == ("error", "prompt_too_long")
    assert body["error"].endswith("(413 request_too_large): at most 1 MiB here")
    assert "tokens" not in body["error"]
    assert chat(client, "short", conversation_id=body["conversation_id"])["status"] == "success"


def test_a_model_that_is_down_gives_an_error_and_the_host_stays_well(make_host: MakeHost) -> None:
    host = make_host(settings={"ANTHROPIC_BASE_URL": "http://127.0.0.1:9"}).start()
    with host.client() as client:
        body = chat(client, "hello", max_execution_ms=1500)
        assert body["status"] in ("error", "timeout")
        assert "127.0.0.1" not in str(body)
        assert client.get("/health").json()["status"] == "ok"
        assert client.get(f"/chat/{body['conversation_id']}").json()["status"] == "idle"


def test_a_client_that_goes_away_does_not_stop_the_run(client: httpx2.Client, host: HostProcess) -> None:
    message = directive(deltas=["a", "b", "c"], delta_delay_ms=150)
    with client.stream("POST", "/chat", json={"message": message, "stream": True}) as response:
        start = next(frames(response.iter_lines()))[2]
    path = f"/chat/{start['conversation_id']}/runs/{start['run_id']}/events"
    with host.client() as other, other.stream("GET", path, headers={"Last-Event-ID": "1"}) as response:
        rest = list(frames(response.iter_lines()))
    assert rest[0][0] == 2
    assert "".join(data["text"] for _, name, data in rest if name == "chunk") == "abc"
    assert rest[-1][2]["result"] == "abc"
    listed = client.get(f"/chat/{start['conversation_id']}/messages").json()["messages"]
    assert listed[-1]["content"] == "abc"


def test_a_run_that_was_cancelled_keeps_its_finished_steps(client: httpx2.Client) -> None:
    body = {"message": directive(steps=WRITE_AND_HANG), "stream": True, "show_tool_use": True}
    with client.stream("POST", "/chat", json=body) as response:
        events = frames(response.iter_lines())
        conversation = next(events)[2]["conversation_id"]
        assert next(event for event in events if event[1] == "tool_result")[2]["is_error"] is False
        assert client.post(f"/chat/{conversation}/cancel").status_code == 202
        rest = list(events)
    assert [name for _, name, _ in rest] == ["error", "done"]
    assert (rest[-1][2]["code"], rest[-1][2]["result"]) == ("cancelled", "first")
    run = client.get(f"/chat/{conversation}/runs").json()["runs"][0]
    assert run["status"] == "cancelled"
    assert chat(client, "go on", conversation_id=conversation)["status"] == "success"


@alone_on_the_store
def test_a_run_that_was_killed_while_it_only_read_may_be_repeated(make_host: MakeHost) -> None:
    host = make_host().start()
    reads = {"tools": [{"name": "list_dir", "input": {}}, {"name": "read_file", "input": {"path": "a.txt"}}]}
    with host.client() as client, contextlib.suppress(httpx2.TransportError):
        message = directive(steps=[reads, {"hang": True}])
        body = {"message": message, "stream": True, "show_tool_use": True}
        with client.stream("POST", "/chat", json=body) as response:
            for _, name, data in frames(response.iter_lines()):
                if name == "start":
                    start = data
                if name == "tool_use":
                    host.kill()
    host.start()
    path = f"/chat/{start['conversation_id']}/runs/{start['run_id']}"
    with host.client() as client:
        until(lambda: client.get(path).json()["status"] != "running")
        assert client.get(path).json()["code"] == "retryable"


def test_a_conversation_goes_on_after_a_restart(make_host: MakeHost) -> None:
    host = make_host().start()
    with host.client() as client:
        first = chat(client, directive("remember the sea", text="noted"))
    assert host.stop() == 0
    host.start()
    with host.client() as client:
        conversation = first["conversation_id"]
        again = chat(client, "what was it?", conversation_id=conversation)
        assert again["session_id"] == first["session_id"]
        listed = client.get(f"/chat/{conversation}/messages").json()["messages"]
        assert len(listed) == 4


@alone_on_the_store
@pytest.mark.parametrize("steps", [WRITE_AND_HANG, READ_AND_HANG], ids=["wrote", "read"])
def test_after_kill_9_nothing_stays_running_and_the_follower_is_told(
    make_host: MakeHost, model: ModelProcess, steps: list[dict[str, Any]]
) -> None:
    host = make_host().start()
    mark = f"kill-{len(steps[0])}"
    with host.client() as client, contextlib.suppress(httpx2.TransportError):
        with client.stream(
            "POST",
            "/chat",
            json={"message": directive(mark, steps=steps), "stream": True, "show_tool_use": True},
        ) as response:
            for _, name, data in frames(response.iter_lines()):
                if name == "start":
                    start = data
                if name == "tool_result":
                    # The next step is asked for only after this one is stored.
                    until(lambda: asked(model, mark) == 2)
                    host.kill()
    host.start()
    with host.client() as client:
        path = f"/chat/{start['conversation_id']}"
        assert client.get(path).json()["status"] == "idle"
        run = client.get(f"{path}/runs/{start['run_id']}").json()
        assert (run["status"], run["code"]) == ("error", "retryable")
        with client.stream("GET", f"{path}/runs/{start['run_id']}/events") as response:
            rest = list(frames(response.iter_lines()))
        assert [name for _, name, _ in rest][-2:] == ["error", "done"]
        assert chat(client, "go on", conversation_id=start["conversation_id"])["status"] == "success"


@alone_on_the_store
def test_a_run_killed_inside_a_command_is_interrupted_and_not_repeated(make_host: MakeHost) -> None:
    host = make_host().start()
    command = "echo once >> count.txt; while :; do sleep 0.1; done"
    message = directive(tools=[{"name": "exec", "input": {"command": command}}])
    counted = Path(host.environment["MEMORY_DIR"]) / "count.txt"
    key = {"Idempotency-Key": "one"}
    with host.client() as client, contextlib.suppress(httpx2.TransportError):
        with client.stream(
            "POST", "/chat", json={"message": message, "stream": True}, headers=key
        ) as response:
            start = next(frames(response.iter_lines()))[2]
            until(lambda: counted.exists() and counted.read_text())
            host.kill()
    host.start()
    with host.client() as client:
        run = client.get(f"/chat/{start['conversation_id']}/runs/{start['run_id']}").json()
        assert (run["status"], run["code"]) == ("error", "interrupted")
        again = client.post("/chat", json={"message": message, "stream": True}, headers=key)
        assert "interrupted" in again.text
    assert counted.read_text() == "once\n"


@alone_on_the_store
def test_the_same_key_retries_a_run_that_had_no_effect_without_storing_the_message_twice(
    make_host: MakeHost, model: ModelProcess
) -> None:
    host = make_host().start()
    key = {"Idempotency-Key": "again"}
    body = {"message": directive("asked-once", text="late", hang_after_deltas=0, times=1), "stream": True}
    with host.client() as client, contextlib.suppress(httpx2.TransportError):
        with client.stream("POST", "/chat", json=body, headers=key) as response:
            start = next(frames(response.iter_lines()))[2]
            until(lambda: asked(model, "asked-once") == 1)
            host.kill()
    host.start()
    with host.client() as client:
        with client.stream("POST", "/chat", json=body, headers=key) as response:
            told = list(frames(response.iter_lines()))
        assert told[-1][2]["result"] == "late"
        assert told[0][2]["conversation_id"] == start["conversation_id"]
        listed = client.get(f"/chat/{start['conversation_id']}/messages").json()["messages"]
        assert [entry["role"] for entry in listed] == ["user", "assistant"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_lets_a_run_finish_within_its_grace(make_host: MakeHost, number: signal.Signals) -> None:
    host = make_host(settings={"STOP_GRACE_MS": "20000"}).start()
    results: list[dict[str, Any]] = []
    words = f"in time before {number.name}"

    def talk() -> None:
        with host.client() as client:
            results.append(chat(client, directive(text=words, delay_ms=3000)))

    thread = threading.Thread(target=talk)
    thread.start()
    until(lambda: words in str(host_requests(host)))
    assert host.process is not None
    # A terminal that goes away tells all of its processes.
    for process in host.tree()[:: 1 if number == signal.SIGHUP else 1000]:
        with contextlib.suppress(psutil.NoSuchProcess):  # one of them may just have ended by itself
            process.send_signal(number)
    with host.client() as client:
        until(lambda: client.get("/ready").status_code == 503)
        refused = client.post("/chat", json={"message": "too late"})
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
        assert client.get("/health").status_code == 200
    thread.join(60)
    assert host.process.wait(60) == 0
    assert results[0]["result"] == words


def test_under_nohup_a_terminal_that_goes_away_changes_nothing(make_host: MakeHost) -> None:
    host = make_host()
    host.command = ("nohup", *host.command)
    host.start()
    assert host.process is not None
    host.process.send_signal(signal.SIGHUP)
    with host.client() as client:
        assert chat(client, "still here")["result"] == "echo: still here"
        assert client.get("/ready").status_code == 200


def test_sigterm_stops_a_run_that_outlives_its_grace_and_tells_the_client(make_host: MakeHost) -> None:
    host = make_host(settings={"STOP_GRACE_MS": "200"}).start()
    with host.client() as client:
        with client.stream(
            "POST", "/chat", json={"message": directive(hang=True), "stream": True}
        ) as response:
            events = frames(response.iter_lines())
            start = next(events)[2]
            assert host.process is not None
            host.process.send_signal(signal.SIGTERM)
            rest = list(events)
    assert rest[-1][2]["code"] == "shutdown"
    assert host.process.wait(60) == 0
    host.start()
    with host.client() as client:
        run = client.get(f"/chat/{start['conversation_id']}/runs/{start['run_id']}").json()
        assert (run["status"], run["code"]) == ("error", "shutdown")


def test_control_stop_ends_the_host_with_exit_code_0_and_leaves_no_process(make_host: MakeHost) -> None:
    host = make_host().start()
    with host.client() as client:
        chat(client, directive(tools=[{"name": "exec", "input": {"command": "true"}}]))
        tree = host.tree()
        assert len(tree) > 1
        answer = client.post("/control/stop", json={"reason": "test"})
        assert answer.json()["status"] == "stopping"
        assert answer.json()["reason"] == "test"
    assert host.process is not None
    assert host.process.wait(60) == 0
    _, alive = psutil.wait_procs(tree, timeout=60)
    assert alive == []


def test_the_files_of_a_conversation_whose_deletion_was_cut_off_go_after_a_restart(
    make_host: MakeHost, tmp_path: Path
) -> None:
    host = make_host().start()
    inbox = tmp_path / "own" / "memory" / "inbox"
    with host.client() as client:
        known = client.post("/chat", json={"message": "x"}).json()["conversation_id"]
        (inbox / known).mkdir(parents=True)
        for number in range(10_000):
            (inbox / known / str(number)).touch()
        with ThreadPoolExecutor() as threads:
            asked = threads.submit(client.delete, f"/chat/{known}")
            until(lambda: not (inbox / known).exists() or len(os.listdir(inbox / known)) < 9_900)
            host.kill()
            assert asked.exception() is not None or asked.result().status_code == 204
    with host.start().client() as client:
        until(lambda: client.delete(f"/chat/{known}").status_code == 404)
        until(lambda: not (inbox / known).exists())


def test_the_concurrency_cap_answers_503_and_recovers(make_host: MakeHost) -> None:
    host = make_host(settings={"MAX_CONCURRENT_RUNS": "1"}).start()
    with host.client() as client:
        with client.stream(
            "POST", "/chat", json={"message": directive(hang=True), "stream": True}
        ) as response:
            events = frames(response.iter_lines())
            start = next(events)[2]
            refused = client.post("/chat", json={"message": "me too"})
            assert refused.status_code == 503
            assert refused.json()["code"] == "at_capacity"
            client.post(f"/chat/{start['conversation_id']}/cancel")
            list(events)
        assert chat(client, "now")["status"] == "success"


def host_requests(host: HostProcess) -> Any:
    with plain_client() as client:
        return client.get(f"{host.environment['ANTHROPIC_BASE_URL']}/_requests").json()


def test_a_key_and_an_event_id_still_mean_the_same_after_a_restart(
    make_host: MakeHost, model: ModelProcess
) -> None:
    host = make_host().start()
    body = {"message": directive("asked-before-restart", deltas=["a", "b", "c"])}
    key = {"Idempotency-Key": "survives"}
    with host.client() as client:
        first = client.post("/chat", json=body, headers=key).json()
        assert client.post("/chat", json=body, headers=key).json() == first
    host.kill()
    host.start()
    with host.client() as client:
        assert client.post("/chat", json=body, headers=key).json() == first
        other = client.post("/chat", json={"message": "another"}, headers=key)
        assert (other.status_code, other.json()["code"]) == (409, "idempotency_mismatch")
        path = f"/chat/{first['conversation_id']}/runs/{first['run_id']}/events"
        with client.stream("GET", path) as response:
            told = list(frames(response.iter_lines()))
        with client.stream("GET", path, headers={"Last-Event-ID": "2"}) as response:
            assert list(frames(response.iter_lines())) == told[2:]
    assert told[-1][2] == first
    assert asked(model, "asked-before-restart") == 1


@alone_on_the_store
def test_what_a_stream_said_is_stored_as_it_goes_and_told_by_the_next_host(make_host: MakeHost) -> None:
    host = make_host().start()
    message = directive("said and cut off", deltas=["a", "b"], hang_after_deltas=2, times=1)
    with (
        host.client() as client,
        client.stream("POST", "/chat", json={"message": message, "stream": True}) as response,
    ):
        events = frames(response.iter_lines())
        start = next(events)[2]
        seen = [next(event for event in events if event[1] == "chunk")]
        with local_database(host) as database:
            count = "SELECT count(*) FROM run_events WHERE name = 'chunk'"
            until(lambda: database.execute(count).fetchone()[0])
        host.kill()
    host.start()
    path = f"/chat/{start['conversation_id']}/runs/{start['run_id']}/events"
    with host.client() as client, client.stream("GET", path) as response:
        told = list(frames(response.iter_lines()))
    assert [event for event in told if event[1] == "chunk"][:1] == seen
    assert told[-1][2]["status"] == "error"


def test_two_requests_with_one_key_at_once_are_one_run(host: HostProcess, model: ModelProcess) -> None:
    body = {"message": directive("asked-by-two", text="one", delay_ms=300)}
    answers: list[dict[str, Any]] = []

    def ask() -> None:
        with host.client() as client:
            answers.append(client.post("/chat", json=body, headers={"Idempotency-Key": "twice"}).json())

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len({answer["run_id"] for answer in answers}) == 1
    assert asked(model, "asked-by-two") == 1


@alone_on_the_store
def test_a_run_that_fails_inside_the_host_has_ended_and_the_conversation_is_free(
    make_host: MakeHost,
) -> None:
    host = make_host().start()
    with host.client() as client, local_database(host) as database:
        known = chat(client, "hello")["conversation_id"]
        database.execute(NO_STEP)
        message = directive(steps=[{"tools": [{"name": "list_dir", "input": {}}]}, {"text": "done"}])
        failed = chat(client, message, conversation_id=known)
        assert (failed["status"], failed["code"]) == ("error", "internal")
        assert "no step" not in str(failed)
        assert client.get(f"/chat/{known}").json()["status"] == "idle"
        database.execute("DROP TRIGGER no_step")
        assert chat(client, "again", conversation_id=known)["result"] == "echo: again"


@alone_on_the_store
@pytest.mark.parametrize("live", [False, True])
def test_a_run_that_lost_its_lease_ends_as_documented(make_host: MakeHost, *, live: bool) -> None:
    """As after a freeze that outlasted the lease: somebody ended the run meanwhile."""
    host = make_host(settings={"LEASE_MS": "3000"}).start()
    message = directive(steps=[{"text": "one", "tools": [{"name": "list_dir", "input": {}}]}, {"hang": True}])
    told: list[Any] = []

    def talk() -> None:
        with host.client() as client:
            body = {"message": message, "conversation_id": "main"}
            told.extend(stream(client, body) if live else [client.post("/chat", json=body)])

    with host.client() as client, local_database(host) as database:
        thread = threading.Thread(target=talk)
        thread.start()

        def ended() -> bool:
            # Again and again: the host renews what nobody found yet.
            database.execute("UPDATE runs SET lease_until = 0 WHERE state = 'running'")
            return not thread.is_alive()

        until(ended)
        if live:
            assert [name for _, name, _ in told][-2:] == ["error", "done"]
            answer = told[-1][2]
        else:
            assert told[0].status_code == 200
            answer = told[0].json()
        assert (answer["status"], answer["code"], answer["conversation_id"]) == (
            "error",
            "lease_lost",
            "main",
        )
        until(lambda: client.get("/chat/main").json()["status"] == "idle")
        assert chat(client, "again", conversation_id="main")["status"] == "success"


@alone_on_the_store
def test_a_run_whose_end_could_not_be_stored_ends_with_its_lease(make_host: MakeHost) -> None:
    host = make_host(settings={"LEASE_MS": "3000"}).start()
    with host.client() as client, local_database(host) as database:
        known = chat(client, "hello")["conversation_id"]
        database.execute(NO_END)
        body = {"message": "fails", "conversation_id": known}
        assert client.post("/chat", json=body, headers={"Idempotency-Key": "k"}).status_code == 500
        database.execute("DROP TRIGGER no_end")
        # Whoever repeats the request hears of its end instead of waiting for ever.
        answer = client.post("/chat", json=body, headers={"Idempotency-Key": "k"})
        assert answer.status_code == 200
        until(lambda: client.get(f"/chat/{known}").json()["status"] == "idle")
        assert client.delete(f"/chat/{known}").status_code == 204

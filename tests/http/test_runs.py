"""Runs of all conversations, in the background or not: begun, listed, waited for, cancelled."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import httpx2
import pytest

from tests.http.conftest import MakeHost, alone_on_the_store
from tests.http.two_principals import SETTINGS, TASK, settle, somebody
from tests.running import HostProcess, ModelProcess, directive, new_host, until

HANGS = directive(text="late", hang_after_deltas=0)
HANGS_ONCE = {"text": "whole", "hang_after_deltas": 0, "times": 1}


def begin(client: httpx2.Client, message: str, *, headers: Any = None, **more: Any) -> dict[str, Any]:
    answer = client.post("/chat", json={"message": message, "background": True, **more}, headers=headers)
    assert answer.status_code == 202, answer.text
    begun: dict[str, Any] = answer.json()
    assert answer.headers["location"] == f"/runs/{begun['run_id']}"
    assert begun.keys() == {"conversation_id", "message_id", "run_id", "status"}
    assert begun["status"] == "running"
    return begun


def ended(client: httpx2.Client, run_id: str, **more: Any) -> dict[str, Any]:
    answer = client.get(f"/runs/{run_id}", params={"wait_ms": 60_000, **more})
    assert answer.status_code == 200, answer.text
    run: dict[str, Any] = answer.json()
    return run


def listed(client: httpx2.Client, **params: Any) -> list[str]:
    answer = client.get("/runs", params=params)
    assert answer.status_code == 200, answer.text
    return [run["run_id"] for run in answer.json()["runs"]]


def begun_times(client: httpx2.Client, run_id: str, times: int) -> bool:
    return len(listed(client, root_run_id=run_id)) == times


def test_a_run_in_the_background_is_taken_and_its_answer_is_fetched(client: httpx2.Client) -> None:
    begun = begin(client, directive(text="done in peace"))
    run = ended(client, begun["run_id"])
    assert (run["status"], run["answer"]["result"]) == ("success", "done in peace")
    assert run["answer"]["run_id"] == run["run_id"] == begun["run_id"]
    assert run["message_id"] == begun["message_id"]
    path = f"/chat/{begun['conversation_id']}/runs"
    shown = client.get(path).json()["runs"]
    assert shown == [{name: value for name, value in run.items() if name != "answer"}]
    assert client.get("/runs", params={"limit": 1}).json()["runs"] == shown
    events = client.get(f"{path}/{run['run_id']}/events").text
    assert "event: start" in events
    assert "event: done" in events


def test_the_same_key_is_the_same_run_whether_it_has_ended_or_not(client: httpx2.Client) -> None:
    key = {"Idempotency-Key": f"once-{time.time_ns()}"}
    begun = begin(client, HANGS, headers=key)
    assert begin(client, HANGS, headers=key) == begun
    assert client.post(f"/runs/{begun['run_id']}/cancel").status_code == 202
    assert ended(client, begun["run_id"])["status"] == "cancelled"
    assert begin(client, HANGS, headers=key) == begun


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"message": "a", "background": True, "stream": True}, "stream"),
        ({"message": "a", "background": "yes"}, "background"),
        ({"message": "a", "background": 1}, "background"),
    ],
)
def test_a_wrong_wish_for_the_background_names_its_field(
    client: httpx2.Client, body: dict[str, Any], field: str
) -> None:
    answer = client.post("/chat", json=body)
    assert (answer.status_code, answer.json()["error"].split(":")[0]) == (400, field)


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("status=done", "status"),
        ("since=yesterday", "since"),
        ("until=2026-13-01", "until"),
        ("limit=0", "limit"),
        ("cursor=abc", "cursor"),
        ("code=%00", "code"),
        ("task_id=%00", "task_id"),
        ("root_run_id=%00", "root_run_id"),
        ("conversation_id=%00", "conversation_id"),
    ],
)
def test_a_wrong_filter_names_its_field(client: httpx2.Client, query: str, field: str) -> None:
    answer = client.get(f"/runs?{query}")
    assert (answer.status_code, answer.json()["error"].split(":")[0]) == (400, field)


@pytest.mark.parametrize("query", ["wait_ms=60001", "wait_ms=-1", "wait_ms=1.5", "wait_ms=", "chain=perhaps"])
def test_a_wrong_wait_names_its_field(client: httpx2.Client, query: str) -> None:
    begun = begin(client, "hello")
    answer = client.get(f"/runs/{begun['run_id']}?{query}")
    assert (answer.status_code, answer.json()["error"].split(":")[0]) == (400, query.split("=")[0])


def test_the_list_is_narrowed_by_all_that_is_given(client: httpx2.Client) -> None:
    good = ended(client, begin(client, directive(text="good"))["run_id"])
    bad = ended(client, begin(client, directive(text="no", stop_reason="refusal"))["run_id"])
    assert bad["code"] == "refused"
    mine = {"since": good["created_at"]}
    assert listed(client, **mine)[:2] == [bad["run_id"], good["run_id"]]
    assert listed(client, code="refused", **mine)[0] == bad["run_id"]
    assert listed(client, status="success", **mine)[0] == good["run_id"]
    assert listed(client, conversation_id=good["conversation_id"]) == [good["run_id"]]
    assert listed(client, conversation_id=good["conversation_id"], status="error") == []
    assert listed(client, root_run_id=bad["run_id"]) == [bad["run_id"]]
    assert bad["run_id"] not in listed(client, until=good["created_at"][:-1] + "+00:00")[:1] or (
        good["created_at"] == bad["created_at"]
    )
    assert listed(client, since="2999-01-01") == []
    first = client.get("/runs", params={"limit": 1, **mine}).json()
    second = client.get("/runs", params={"limit": 1, "cursor": first["next_cursor"], **mine}).json()
    assert [page["runs"][0]["run_id"] for page in (first, second)] == [bad["run_id"], good["run_id"]]


def test_a_task_triggered_in_the_background_is_found_by_its_run_and_its_task(client: httpx2.Client) -> None:
    task = client.post("/task", json={**TASK, "prompt": directive(text="watered")}).json()["id"]
    key = {"Idempotency-Key": f"task-{task}"}
    body = {"task_id": task, "background": True}
    first = client.post("/task/trigger", json=body, headers=key)
    assert first.status_code == 202, first.text
    run = ended(client, first.json()["run_id"])
    assert run["answer"]["result"] == "watered"
    assert client.post("/task/trigger", json=body, headers=key).json() == first.json()
    assert listed(client, task_id=task) == [run["run_id"]]
    until(lambda: client.get(f"/task/{task}/runs").json()["runs"][0]["status"] == "success")
    assert client.post("/task/trigger", json={"task_id": "no", "background": True}).status_code == 404


def test_a_run_is_cancelled_by_its_id_and_no_other_one(client: httpx2.Client) -> None:
    first = begin(client, directive(text="quick"))
    ended(client, first["run_id"])
    second = begin(client, HANGS, conversation_id=first["conversation_id"])
    over = client.post(f"/runs/{first['run_id']}/cancel")
    assert (over.status_code, over.json()["code"]) == (409, "not_running")
    taken = client.post(f"/runs/{second['run_id']}/cancel")
    assert (taken.status_code, taken.json()["run_id"]) == (202, second["run_id"])
    run = ended(client, second["run_id"])
    assert (run["status"], run["code"]) == ("cancelled", "cancelled")
    unknown = client.post("/runs/run-x/cancel")
    assert (unknown.status_code, unknown.json()["error"]) == (404, "run_id not found: run-x")


def test_who_waits_gets_the_state_so_far_when_the_time_is_over(client: httpx2.Client) -> None:
    begun = begin(client, HANGS)
    run = client.get(f"/runs/{begun['run_id']}", params={"wait_ms": 50}).json()
    assert (run["status"], run["answer"]) == ("running", None)
    assert begun["run_id"] in listed(client, status="running")
    client.post(f"/runs/{begun['run_id']}/cancel")


def test_one_waiter_too_many_of_a_principal_is_answered_at_once(client: httpx2.Client) -> None:
    begun = begin(client, HANGS)
    path = f"/runs/{begun['run_id']}"
    answers: list[httpx2.Response] = []
    waiters = [
        threading.Thread(target=lambda: answers.append(client.get(path, params={"wait_ms": 60_000})))
        for _ in range(20)
    ]
    for waiter in waiters:
        waiter.start()
    until(lambda: len(answers) == 4)
    assert {answer.json()["status"] for answer in answers} == {"running"}
    client.post(f"{path}/cancel")
    for waiter in waiters:
        waiter.join()
    assert sorted(answer.json()["status"] for answer in answers) == ["cancelled"] * 16 + ["running"] * 4


def test_a_host_that_stops_answers_who_waits(make_host: MakeHost) -> None:
    host = make_host(settings={"STOP_GRACE_MS": "3000"}).start()
    with host.client() as client:
        begun = begin(client, HANGS)
        found: list[dict[str, Any]] = []
        waiter = threading.Thread(target=lambda: found.append(ended(client, begun["run_id"])))
        waiter.start()
        assert host.stop() == 0
        waiter.join()
    assert found[0]["run_id"] == begun["run_id"]


@alone_on_the_store
def test_a_run_in_the_background_survives_kill_9_and_ends(make_host: MakeHost, model: ModelProcess) -> None:
    host = make_host(settings={"LEASE_MS": "1000"}).start()
    key = {"Idempotency-Key": "kill"}
    message = directive("survive", **HANGS_ONCE)
    with host.client() as client:
        begun = begin(client, message, headers=key, show_tool_use=True)
        until(lambda: any("survive" in str(asked) for asked in model.requests()))
    host.kill()
    host.start()
    with host.client() as client:
        so_far = client.get(f"/runs/{begun['run_id']}?chain=true").json()
        assert so_far["status"] in ("running", "success")
        run = ended(client, begun["run_id"], chain=True)
        assert (run["status"], run["answer"]["result"]) == ("success", "whole")
        assert run["root_run_id"] == run["previous_run_id"] == begun["run_id"]
        cut_off = client.get(f"/runs/{begun['run_id']}").json()
        assert (cut_off["code"], cut_off["next_run_id"]) == ("retryable", run["run_id"])
        assert begin(client, message, headers=key, show_tool_use=True) == begun
        assert listed(client, root_run_id=begun["run_id"]) == [run["run_id"], begun["run_id"]]
        said = client.get(f"/chat/{begun['conversation_id']}/messages").json()["messages"]
        assert [each["role"] for each in said] == ["user", "assistant"]


@alone_on_the_store
def test_a_run_is_begun_again_three_times_and_then_ends_with_that_code(
    make_host: MakeHost, model: ModelProcess
) -> None:
    host = make_host(settings={"LEASE_MS": "1000"}).start()
    with host.client() as client:
        begun = begin(client, directive(text="never", hang_after_deltas=0))
    for more in range(4):
        with host.client() as client:
            until(partial(begun_times, client, begun["run_id"], more + 1))
        host.kill()
        host.start()
    with host.client() as client:
        run = ended(client, begun["run_id"], chain=True)
        assert (run["status"], run["code"]) == ("error", "retryable")
        runs = listed(client, root_run_id=begun["run_id"])
        assert (len(runs), runs[0]) == (4, run["run_id"])


@alone_on_the_store
def test_what_was_cut_off_is_not_begun_again_where_people_went_on_or_stopped_it(make_host: MakeHost) -> None:
    # The next look is seconds away: what is asked meanwhile comes first.
    host = make_host(settings={"LEASE_MS": "60000"}).start()
    with host.client() as client:
        stopped, passed = begin(client, HANGS), begin(client, HANGS)
    host.kill()
    host.start()
    with host.client() as client:
        assert client.post(f"/runs/{stopped['run_id']}/cancel").status_code == 202
        assert client.post(f"/runs/{stopped['run_id']}/cancel").status_code == 409
        answer = client.post("/chat", json={"message": "go on", "conversation_id": passed["conversation_id"]})
        assert answer.status_code == 200
        for begun in (stopped, passed):
            run = client.get(f"/runs/{begun['run_id']}").json()
            assert (run["code"], run["next_run_id"]) == ("retryable", None)
        run = ended(client, passed["run_id"], chain=True)
        assert (run["code"], run["next_run_id"]) == ("retryable", None)


@alone_on_the_store
def test_a_task_triggered_in_the_background_begins_again_in_its_slot(
    make_host: MakeHost,
) -> None:
    host = make_host(settings={"LEASE_MS": "1000"}).start()
    with host.client() as client:
        task = client.post("/task", json={**TASK, "prompt": HANGS}).json()["id"]
        begun = client.post("/task/trigger", json={"task_id": task, "background": True}).json()
    host.kill()
    host.start()
    with host.client() as client:
        until(partial(begun_times, client, begun["run_id"], 2))
        second = listed(client, root_run_id=begun["run_id"])[0]
        assert client.post(f"/runs/{second}/cancel").status_code == 202
        run = ended(client, begun["run_id"], chain=True)
        assert (run["run_id"], run["code"], run["previous_run_id"]) == (second, "cancelled", begun["run_id"])
        until(lambda: client.get(f"/task/{task}/runs").json()["runs"][0]["status"] == "cancelled")
        log = client.get(f"/task/{task}/runs").json()["runs"]
        assert [entry["run_id"] for entry in log] == [second]


@pytest.fixture(scope="module")
def host_of_two(model: ModelProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    process = new_host(tmp_path_factory.mktemp("two"), model.url, SETTINGS)
    yield process.start()
    process.kill()


def test_each_lists_its_own_and_the_operator_whose_it_wants(host_of_two: HostProcess) -> None:
    with somebody(host_of_two, "Ann") as ann, somebody(host_of_two, "Bob") as bob:
        settle(ann, "apples")
        settle(bob, "bananas")
        begun = begin(ann.client, "hello", conversation_id="main")
        assert begun["conversation_id"] == "main"
        ended(ann.client, begun["run_id"])
        assert set(listed(ann.client)).isdisjoint(listed(bob.client))
        assert {ann.ids["run"], ann.ids["main_run"], begun["run_id"]} <= set(listed(ann.client))
        assert begun["run_id"] in listed(ann.client, conversation_id="main")
        assert begun["run_id"] not in listed(bob.client, conversation_id="main")
        assert listed(bob.client, conversation_id=ann.ids["conversation"]) == []
        assert listed(bob.client, root_run_id=ann.ids["run"]) == []
        assert bob.client.get("/runs", params={"principal_id": ann.id}).status_code == 403
        with host_of_two.client() as operator:
            assert ann.ids["run"] not in listed(operator)
            assert ann.ids["run"] in listed(operator, principal_id=ann.id)
            assert {ann.ids["run"], bob.ids["run"]} <= set(listed(operator, principal_id="*"))
            page = operator.get("/runs", params={"principal_id": ann.id}).json()["runs"]
            assert {run["principal_id"] for run in page} == {ann.id}
            assert operator.get(f"/runs/{ann.ids['run']}").json()["answer"]["status"] == "success"

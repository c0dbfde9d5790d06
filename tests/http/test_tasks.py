"""Scheduled tasks over HTTP: made, listed, changed, run once each slot."""

from __future__ import annotations

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.http.conftest import MakeHost
from tests.running import HostProcess, ModelProcess, directive, frames, until

DUE = {"schedule_type": "once", "schedule_value": "2020-01-01T00:00:00", "run_if_past": True}
LATER = {"schedule_type": "interval", "schedule_value": "3600000"}


@pytest.fixture
def own(make_host: MakeHost) -> HostProcess:
    return make_host().start()


def make(client: httpx2.Client, **fields: Any) -> dict[str, Any]:
    answer = client.post("/task", json={"prompt": directive(text="ran"), **LATER, **fields})
    assert answer.status_code == 201, answer.text
    task: dict[str, Any] = answer.json()
    return task


def test_a_task_is_made_read_changed_and_deleted(client: httpx2.Client) -> None:
    task = make(client, schedule_type="cron", schedule_value="0 9 * * 1", timezone="Europe/Berlin")
    assert task["status"] == "active"
    assert task["next_run"].endswith("Z")
    path = f"/task/{task['id']}"
    assert client.get(path).json() == task
    changed = client.put(path, json={"prompt": "other"}).json()
    assert (changed["prompt"], changed["next_run"]) == ("other", task["next_run"])
    assert client.put(path, json={"status": "paused"}).json()["status"] == "paused"
    assert client.put(path, json={"prompt": None}).status_code == 400
    assert client.delete(path).status_code == 204
    assert client.get(path).status_code == 404
    assert client.put(path, json={"prompt": "x"}).status_code == 404
    assert client.delete(path).status_code == 404


def test_tasks_are_listed_in_pages_that_join(client: httpx2.Client) -> None:
    made = [make(client)["id"] for _ in range(3)]
    listed: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        page = client.get("/tasks", params={"limit": 2, "cursor": cursor}).json()
        listed += [task["id"] for task in page["tasks"]]
        cursor = page["next_cursor"]
    assert [task for task in listed if task in made] == made


def test_a_given_id_is_kept_and_cannot_be_taken_twice(client: httpx2.Client) -> None:
    assert make(client, id="my-own-id")["id"] == "my-own-id"
    again = client.post("/task", json={"prompt": "x", **LATER, "id": "my-own-id"})
    assert again.status_code == 409
    assert again.json()["code"] == "duplicate_id"


def test_an_unknown_conversation_is_not_found_and_nothing_is_made(client: httpx2.Client) -> None:
    before = client.get("/health").json()["database"]
    answer = client.post("/task", json={"prompt": "x", **LATER, "conversation_id": "conv-none"})
    assert answer.status_code == 404
    assert client.get("/health").json()["database"] == before


def test_the_same_key_makes_one_task_and_another_body_is_a_mismatch(client: httpx2.Client) -> None:
    body = {"prompt": "keyed", **LATER}
    key = {"Idempotency-Key": "make-one"}
    first = client.post("/task", json=body, headers=key)
    again = client.post("/task", json=body, headers=key)
    assert first.status_code == again.status_code == 201
    assert first.json() == again.json()
    other = client.post("/task", json={**body, "prompt": "other"}, headers=key)
    assert other.status_code == 409
    assert other.json()["code"] == "idempotency_mismatch"


def test_a_trigger_runs_the_task_now_and_leaves_its_schedule(client: httpx2.Client) -> None:
    task = make(client)
    ran = client.post("/task/trigger", json={"task_id": task["id"]}).json()
    assert (ran["status"], ran["result"]) == ("success", "ran")
    assert ran["next_run"] == task["next_run"]
    log = client.get(f"/task/{task['id']}/runs").json()["runs"]
    assert [entry["status"] for entry in log] == ["success"]
    assert client.post("/task/trigger", json={"task_id": "task-none"}).status_code == 404


def test_a_group_task_speaks_in_its_conversation_and_waits_for_it(client: httpx2.Client) -> None:
    conversation = client.post("/chat", json={"message": "hi"}).json()["conversation_id"]
    task = make(client, context_mode="group", conversation_id=conversation)
    hanging = {"message": directive(hang=True), "conversation_id": conversation, "stream": True}
    with client.stream("POST", "/chat", json=hanging) as response:
        events = frames(response.iter_lines())
        next(events)
        busy = client.post("/task/trigger", json={"task_id": task["id"]})
        assert busy.status_code == 409
        client.post(f"/chat/{conversation}/cancel")
        list(events)
    assert client.post("/task/trigger", json={"task_id": task["id"]}).status_code == 200
    listed = client.get(f"/chat/{conversation}/messages").json()["messages"]
    assert [entry["content"] for entry in listed][-1] == "ran"


def test_an_isolated_task_tells_its_owner_and_its_conversation_stays_hidden(client: httpx2.Client) -> None:
    owner = client.post("/chat", json={"message": "hi"}).json()["conversation_id"]
    steps = [
        {"tools": [{"name": "mcp__picoclaw__send_message", "input": {"text": "news"}}]},
        {"text": "told"},
    ]
    task = make(client, prompt=directive(steps=steps), conversation_id=owner)
    ran = client.post("/task/trigger", json={"task_id": task["id"]}).json()
    assert ran["conversation_id"] != owner
    said = [(said["conversation_id"], said["text"]) for said in ran["outbound_messages"]]
    assert said == [(owner, "news"), (owner, "told")]
    listed = [entry["conversation_id"] for entry in client.get("/chat").json()["conversations"]]
    assert ran["conversation_id"] not in listed
    every = client.get("/chat", params={"include_temporary": "true"}).json()["conversations"]
    assert ran["conversation_id"] in [entry["conversation_id"] for entry in every]


def test_nothing_due_is_said_so(own: HostProcess) -> None:
    with own.client() as client:
        assert client.post("/task/check").json() == {"checked": 0, "message": "No due tasks"}


def test_many_checks_at_once_run_every_due_task_once(own: HostProcess) -> None:
    with own.client() as client:
        made = {make(client, **DUE)["id"] for _ in range(6)}
        ran: list[str] = []

        def check() -> None:
            with own.client() as checker:
                while (answer := checker.post("/task/check").json()).get("executed"):
                    ran.append(answer["executed"]["task_id"])

        threads = [threading.Thread(target=check) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert sorted(ran) == sorted(made)
        for task_id in made:
            assert client.get(f"/task/{task_id}").json()["status"] == "completed"
            assert len(client.get(f"/task/{task_id}/runs").json()["runs"]) == 1


def test_a_check_runs_up_to_max_and_tells_what_remains(own: HostProcess) -> None:
    with own.client() as client:
        for _ in range(3):
            make(client, **DUE)
        answer = client.post("/task/check", json={"max": 2}).json()
        assert (answer["checked"], answer["remaining"], len(answer["results"])) == (3, 1, 2)
        assert answer["executed"] == answer["results"][0]


def test_a_model_outage_never_completes_a_task(own: HostProcess) -> None:
    with own.client() as client:
        task = make(client, prompt=directive(status=400), **DUE)
        answer = client.post("/task/check").json()
        assert answer["executed"]["status"] == "error"
        after = client.get(f"/task/{task['id']}").json()
        assert after["status"] == "active"
        assert after["next_run"] is not None
        assert after["attempts"] == 1


def test_with_the_internal_scheduler_due_tasks_run_by_themselves(make_host: MakeHost) -> None:
    host = make_host(settings={"SCHEDULER": "internal"}).start()
    with host.client() as client:
        task = make(client, **DUE)
        until(lambda: client.get(f"/task/{task['id']}").json()["status"] == "completed")
        assert len(client.get(f"/task/{task['id']}/runs").json()["runs"]) == 1


def test_a_heartbeat_tells_its_owner_what_it_has_to_say_and_keeps_quiet_otherwise(
    make_host: MakeHost, model: ModelProcess
) -> None:
    settings = {"PICOCLAW_HEARTBEAT_ENABLED": "true", "CLAUDE_MODEL": "fake-heartbeat"}
    host = make_host(settings=settings).start()
    memory = Path(host.environment["MEMORY_DIR"])
    with host.client() as client:
        nothing = client.post("/task/trigger", json={"task_id": "task-heartbeat"}).json()
        assert (nothing["status"], nothing["result"]) == ("success", "HEARTBEAT_OK")
        (memory / "HEARTBEAT.md").write_text("# Heartbeat\n<!-- nothing yet -->\n")
        client.post("/task/trigger", json={"task_id": "task-heartbeat"})
        assert not [1 for request in model.requests() if request["body"]["model"] == "fake-heartbeat"]
        (memory / "HEARTBEAT.md").write_text(directive(text="HEARTBEAT_OK"))
        quiet = client.post("/task/trigger", json={"task_id": "task-heartbeat"}).json()
        (memory / "HEARTBEAT.md").write_text(directive(text="The milk is off."))
        loud = client.post("/task/trigger", json={"task_id": "task-heartbeat"}).json()
    assert (quiet["result"], quiet["outbound_messages"]) == ("HEARTBEAT_OK", [])
    said = [(message["conversation_id"], message["text"]) for message in loud["outbound_messages"]]
    assert said == [("main", "The milk is off.")]


def test_a_task_that_is_triggered_twice_with_one_key_runs_once(client: httpx2.Client) -> None:
    task = make(client)
    key = {"Idempotency-Key": f"once-{task['id']}"}
    answers = [
        client.post("/task/trigger", json={"task_id": task["id"]}, headers=key).json() for _ in range(2)
    ]
    assert answers[0] == answers[1]
    assert len(client.get(f"/task/{task['id']}/runs").json()["runs"]) == 1


def test_triggers_with_one_key_at_once_are_all_told_of_one_run(make_host: MakeHost) -> None:
    host = make_host(settings={"PICOCLAW_HEARTBEAT_ENABLED": "true"}).start()
    # Between the slot's claim and the run this file is read.
    (Path(host.environment["MEMORY_DIR"]) / "HEARTBEAT.md").write_text(directive(text="The milk is off."))
    with host.client() as client, ThreadPoolExecutor(8) as threads:

        def trigger(_: int) -> httpx2.Response:
            key = {"Idempotency-Key": "once"}
            return client.post("/task/trigger", json={"task_id": "task-heartbeat"}, headers=key)

        answers = list(threads.map(trigger, range(8)))
        assert [(answer.status_code, answer.json().get("code")) for answer in answers] == [(200, None)] * 8
        assert len({answer.json()["run_id"] for answer in answers}) == 1
        assert len(client.get("/task/task-heartbeat/runs").json()["runs"]) == 1


def test_a_past_time_is_refused_unless_it_is_wanted(client: httpx2.Client) -> None:
    past = {"prompt": "x", "schedule_type": "once", "schedule_value": "2020-01-01T00:00"}
    refused = client.post("/task", json=past)
    assert refused.status_code == 400
    assert "now it is" in refused.json()["error"]
    assert refused.json()["error"].count("UTC") == 1
    assert (
        client.post("/task", json={**past, "run_if_past": True, "timezone": "Asia/Tokyo"}).status_code == 201
    )


def test_a_group_tasks_answer_is_told_to_its_people_as_well(client: httpx2.Client) -> None:
    conversation = client.post("/chat", json={"message": "hi"}).json()["conversation_id"]
    task = make(client, context_mode="group", conversation_id=conversation)
    quiet = make(client, context_mode="group", conversation_id=conversation, deliver="none")
    told, untold = (
        client.post("/task/trigger", json={"task_id": each["id"]}).json()["outbound_messages"]
        for each in (task, quiet)
    )
    assert [(said["conversation_id"], said["text"]) for said in told] == [(conversation, "ran")]
    assert untold == []


def test_a_failing_task_is_told_of_once_and_again_when_it_works(client: httpx2.Client) -> None:
    task = make(client, prompt=directive(status=400))
    first, second = (
        client.post("/task/trigger", json={"task_id": task["id"]}).json()["outbound_messages"]
        for _ in range(2)
    )
    assert ([said["text"].startswith("⚠️ The scheduled task “") for said in first], second) == ([True], [])
    client.put(f"/task/{task['id']}", json={"prompt": directive(text="ran")})
    works = client.post("/task/trigger", json={"task_id": task["id"]}).json()["outbound_messages"]
    assert [said["text"][-12:] for said in works] == ["works again.", "ran"]


def test_a_run_is_told_that_it_is_the_tasks_and_what_the_local_time_is(
    model: ModelProcess, make_host: MakeHost
) -> None:
    host = make_host(settings={"TZ": "Asia/Tokyo"}).start()
    with host.client() as client:
        task = make(client, prompt=directive("remind me every minute", text="ran"))
        client.post("/task/trigger", json={"task_id": task["id"]})
    (blocks,) = (
        message["content"]
        for request in model.requests()
        for message in request["body"]["messages"]
        if "remind me every minute" in str(message["content"]) and task["id"] in str(message["content"])
    )
    message, notice = (block["text"] for block in blocks)
    assert notice.startswith("<notice>The scheduler begins a run of the scheduled task")
    assert "don't schedule it again" in notice
    assert re.search(r' time="\w{3} \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+09:00 Asia/Tokyo">', message)


def test_a_task_that_is_deleted_in_mid_run_has_its_run_cancelled(client: httpx2.Client) -> None:
    owner = client.post("/chat", json={"message": "hi"}).json()["conversation_id"]
    task = make(client, prompt=directive(hang=True), conversation_id=owner)
    ended: list[httpx2.Response] = []
    trigger = threading.Thread(
        target=lambda: ended.append(client.post("/task/trigger", json={"task_id": task["id"]}))
    )
    trigger.start()
    path = f"/task/{task['id']}"
    until(lambda: any(run["conversation_id"] for run in client.get(f"{path}/runs").json()["runs"]))
    busy = client.post("/task/trigger", json={"task_id": task["id"]})
    assert (busy.status_code, busy.json()["code"]) == (409, "task_running")
    run = client.get(f"{path}/runs").json()["runs"][0]
    assert client.delete(path).status_code == 204
    trigger.join(60)
    assert (ended[0].status_code, ended[0].json()["code"]) == (409, "cancelled")
    assert ended[0].json()["error"] == "The task was deleted while it ran."
    (stopped,) = client.get(f"/chat/{run['conversation_id']}/runs").json()["runs"]
    assert stopped["code"] == "cancelled"


def test_words_that_sound_like_a_wish_to_schedule_make_no_more_tasks(make_host: MakeHost) -> None:
    host = make_host(offline=True).start()
    with host.client() as client:
        task = make(client, prompt="every second remind me to drink", conversation_id="main")
        ran = client.post("/task/trigger", json={"task_id": task["id"]}).json()
        tasks = client.get("/tasks").json()["tasks"]
    assert [each["id"] for each in tasks] == [task["id"]]
    assert "Reminder: drink" in [said["text"] for said in ran["outbound_messages"]]


def test_what_is_overdue_or_never_ticked_is_said_by_health_and_at_the_start(make_host: MakeHost) -> None:
    host = make_host().start()
    with host.client() as client:
        assert client.get("/health").json()["scheduler"] == {"mode": "external", "overdue": 0, "note": None}
        task = make(client, **DUE)
        health = client.get("/health").json()["scheduler"]
        assert (health["mode"], health["overdue"]) == ("external", 1)
        assert health["note"].startswith("1 overdue, the first for ")
        assert "POST /task/check" in health["note"]
        assert client.get(f"/task/{task['id']}").json()["overdue"]
    host.stop()
    host.start()
    assert "SCHEDULER is external" in host.log_text


def test_what_a_tasks_run_adds_is_bounded_and_it_may_end_its_own_task(client: httpx2.Client) -> None:
    owner = client.post("/chat", json={"message": "hi"}).json()["conversation_id"]
    more = {"name": "mcp__picoclaw__schedule_task", "input": {"prompt": "x", **LATER}}
    own = {"name": "mcp__picoclaw__cancel_task", "input": {"task_id": f"own-{owner}"}}
    steps = [{"tools": [more] * 12}, {"tools": [own]}, {"text": "that was all"}]
    task = make(client, id=f"own-{owner}", prompt=directive(steps=steps), conversation_id=owner)
    ran = client.post("/task/trigger", json={"task_id": task["id"]}).json()
    assert [said["text"] for said in ran["outbound_messages"]] == ["that was all"]
    tasks = client.get("/tasks", params={"conversation_id": owner}).json()["tasks"]
    assert [each["status"] for each in tasks] == ["completed", *["active"] * 9]


def test_a_task_that_is_triggered_again_with_its_key_while_it_runs_is_the_same_run(own: HostProcess) -> None:
    with own.client() as client:
        task = make(client, prompt=directive(hang=True))
        body, key = {"task_id": task["id"], "background": True}, {"Idempotency-Key": "k"}
        first, again = (client.post("/task/trigger", json=body, headers=key) for _ in range(2))
        assert (first.status_code, again.status_code) == (202, 202)
        assert again.json() == first.json()
        other = client.post("/task/trigger", json=body, headers={"Idempotency-Key": "other"})
        assert other.status_code == 409
        client.post(f"/chat/{first.json()['conversation_id']}/cancel")

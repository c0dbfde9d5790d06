"""Budgets: a run that would pass one pauses, asks, and goes on where it stopped."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest

from tests.http.conftest import MakeHost, alone_on_the_store, configure
from tests.running import ModelProcess, directive, frames, until

PLENTY = 1_000_000


def chat(client: httpx2.Client, message: str, **more: Any) -> dict[str, Any]:
    answer = client.post("/chat", json={"message": message, **more})
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def resume(client: httpx2.Client, conversation: str, **body: Any) -> dict[str, Any]:
    answer = client.post(f"/chat/{conversation}/resume", json=body)
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


def needed(paused: dict[str, Any]) -> int:
    """Return the tokens that a paused run says its next step needs at least."""
    return int(paused["error"].split("needs at least ")[1].split(".")[0].replace(",", ""))


def asked(model: ModelProcess, text: str) -> int:
    return sum(text in str(request["body"]["messages"]) for request in model.requests())


@pytest.mark.parametrize("scope", ["run", "conversation", "day"])
def test_a_run_over_budget_pauses_asks_and_goes_on_without_a_new_message(
    make_host: MakeHost, model: ModelProcess, scope: str
) -> None:
    host = configure(make_host(), budgets={scope: {"tokens": 10}}).start()
    mark = f"over-{scope}"
    with host.client() as client:
        body = chat(client, directive(mark, text="Here I am"))
        assert (body["status"], body["code"]) == ("paused", "budget")
        conversation = body["conversation_id"]
        (asking,) = body["outbound_messages"]
        assert f"POST /chat/{conversation}/resume" in asking["text"]
        assert f"one {scope}" in asking["text"]
        assert asked(model, mark) == 0
        told = client.get(f"/chat/{conversation}").json()
        assert (told["status"], told["pending"]) == ("waiting", 1)
        assert client.get(f"/chat/{conversation}/runs").json()["runs"][0]["status"] == "paused"
        again = resume(client, conversation, allow_tokens=PLENTY)
        assert (again["status"], again["result"]) == ("success", "Here I am")
        listed = client.get(f"/chat/{conversation}/messages").json()["messages"]
        assert [entry["role"] for entry in listed] == ["user", "assistant"]
        assert asked(model, mark) == 1
        ended = client.post(f"/chat/{conversation}/resume", json={"allow_tokens": 1})
        assert (ended.status_code, ended.json()["code"]) == (409, "not_paused")
        (lifted,) = client.get("/audit", params={"action": "budget.lifted"}).json()["audit"]
        assert (lifted["principal_id"], lifted["subject"]) == ("operator", conversation)
        (request,) = client.get("/approvals").json()["approvals"]
        assert (request["status"], request["decided_by"]["address"]) == ("allowed", "127.0.0.1")
        assert request["decided_at"] is not None


def test_a_run_pauses_between_two_steps_and_repeats_none(make_host: MakeHost) -> None:
    host = configure(
        make_host(), agents={"defaults": {"max_tokens": 300}}, budgets={"run": {"tokens": 1}}
    ).start()
    call = {"name": "write_file", "input": {"path": "kept.txt", "content": "x"}}
    steps = [{"text": "y" * 9000, "tools": [call]}, {"text": "second"}]
    with host.client() as client:
        first = chat(client, directive(steps=steps))
        path = f"/chat/{first['conversation_id']}/resume"
        body = {"allow_tokens": needed(first) + 500, "stream": True, "show_tool_use": True}
        with client.stream("POST", path, json=body) as response:
            told = list(frames(response.iter_lines()))
        names = [name for _, name, _ in told if name != "chunk"]
        assert names == ["start", "tool_use", "tool_result", "message", "approval_request", "done"]
        assert told[-1][2]["status"] == "paused"
        (host.root / "memory" / "kept.txt").write_text("by hand")
        again = resume(client, first["conversation_id"], allow_tokens=PLENTY)
        assert (again["status"], again["result"]) == ("success", "second")
        assert (host.root / "memory" / "kept.txt").read_text() == "by hand"


def test_an_allowance_that_is_too_small_pauses_again(make_host: MakeHost) -> None:
    host = configure(make_host(), budgets={"conversation": {"tokens": 1}}).start()
    with host.client() as client:
        conversation = chat(client, "hi")["conversation_id"]
        body = resume(client, conversation, allow_tokens=5)
        assert body["status"] == "paused"
        assert "approved for this run is 5 tokens" in body["error"]
        assert resume(client, conversation)["status"] == "paused"
        assert resume(client, conversation, allow_tokens=PLENTY)["status"] == "success"


def test_spending_outlives_a_restart(make_host: MakeHost) -> None:
    host = configure(make_host(), budgets={"day": {"tokens": 60_000}}).start()
    with host.client() as client:
        used = chat(client, "one")["usage"]
        before = client.get("/usage").json()["usage"][0]
        assert before["tokens"] == sum(used.values())
    host.stop()
    configure(host, budgets={"day": {"tokens": before["tokens"] + 100}}).start()
    with host.client() as client:
        assert client.get("/usage").json()["usage"][0] == before
        assert chat(client, "two")["status"] == "paused"
        fresh = client.get("/usage").json()["usage"][0]
        assert (fresh["tokens"], fresh["runs"]) == (before["tokens"], before["runs"] + 1)


@alone_on_the_store
def test_a_call_that_was_killed_with_the_host_counts_as_what_was_reserved(make_host: MakeHost) -> None:
    host = configure(make_host(), budgets={"day": {"tokens": 60_000}}).start()
    with host.client() as client:
        with client.stream(
            "POST", "/chat", json={"message": directive(text="a", hang_after_deltas=1), "stream": True}
        ) as response:
            lines = response.iter_lines()
            assert any("event: chunk" in line for line in lines)
            host.kill()
    host.start()
    with host.client() as client:
        (day,) = client.get("/usage").json()["usage"]
        assert day["runs"] == 1
        assert day["unsettled_tokens"] > 8192


def test_a_cancelled_call_counts_for_what_was_heard_of_it(make_host: MakeHost) -> None:
    host = configure(make_host(), budgets={"day": {"tokens": 60_000}}).start()
    with host.client() as client:
        body = {"message": directive(text="a", hang_after_deltas=1), "stream": True}
        conversation = ""
        with client.stream("POST", "/chat", json=body) as response:
            for line in response.iter_lines():
                if line.startswith("data:"):
                    conversation = conversation or json.loads(line[5:])["conversation_id"]
                if line == "event: chunk":
                    assert client.post(f"/chat/{conversation}/cancel").status_code == 202
        (day,) = client.get("/usage").json()["usage"]
        assert 0 < day["unsettled_tokens"] < 8192


def test_dollars_are_counted_by_the_prices_and_stop_a_run(make_host: MakeHost, model: ModelProcess) -> None:
    prices = {"claude-test": {"input": 1000.0, "output": 2000.0, "cache_write": 1000.0, "cache_read": 500.0}}
    host = configure(
        make_host(settings={"CLAUDE_MODEL": "claude-test"}),
        budgets={"conversation": {"dollars": 40.0}, "prices": prices},
    ).start()
    with host.client() as client:
        body = chat(client, "hello")
        assert body["status"] == "success"
        used = body["usage"]
        cost = (
            used["input_tokens"] * 1000
            + used["output_tokens"] * 2000
            + used["cache_creation_input_tokens"] * 1000
            + used["cache_read_input_tokens"] * 500
        )
        (row,) = client.get("/usage", params={"conversation_id": body["conversation_id"]}).json()["usage"]
        assert row["dollars"] == pytest.approx(cost / 1e6)
        assert chat(client, "fresh conversation, fresh budget")["status"] == "success"
        unpriced = chat(client, "hello", model="claude-unknown")
        assert (unpriced["status"], unpriced["code"]) == ("error", "misconfigured")
        assert "claude-unknown" in unpriced["error"]
    host.stop()
    configure(host, budgets={"conversation": {"dollars": 0.01}, "prices": prices}).start()
    with host.client() as client:
        body = chat(client, "hello")
        assert (body["status"], body["code"]) == ("paused", "budget")
        assert "$0.01" in body["error"]


def test_a_reply_that_the_budget_cut_short_is_asked_for_anew(
    make_host: MakeHost, model: ModelProcess
) -> None:
    host = configure(make_host(), budgets={"conversation": {"tokens": 1}}).start()
    with host.client() as client:
        message = directive(steps=[{"text": "cut", "stop_reason": "max_tokens"}])
        first = chat(client, message)
        conversation = first["conversation_id"]
        cut = resume(client, conversation, allow_tokens=needed(first) + 500)
        assert (cut["status"], cut["code"]) == ("paused", "budget")
        assert "not enough to finish the reply" in cut["error"]
        sent = model.requests()[-1]["body"]
        assert sent["max_tokens"] < 8192
        again = resume(client, conversation, allow_tokens=PLENTY)
        assert again["status"] == "success"
        assert model.requests()[-1]["body"]["messages"] == sent["messages"]
        assert model.requests()[-1]["body"]["max_tokens"] == 8192


def test_tasks_count_too_and_pause_once(make_host: MakeHost) -> None:
    host = configure(make_host(), budgets={"conversation": {"tokens": 1}}).start()
    with host.client() as client:
        conversation = chat(client, "hi")["conversation_id"]
        task = {
            "prompt": directive("do it", text="did it"),
            "schedule_type": "once",
            "schedule_value": "2020-01-01",
            "run_if_past": True,
            "conversation_id": conversation,
        }
        task_id = client.post("/task", json=task).json()["id"]
        executed = client.post("/task/check").json()["executed"]
        assert executed["status"] == "paused"
        assert executed["outbound_messages"][0]["conversation_id"] == conversation
        assert client.get(f"/task/{task_id}/runs").json()["runs"][0]["status"] == "paused"
        assert client.get(f"/task/{task_id}").json()["status"] == "failed"
        done = resume(client, executed["conversation_id"], allow_tokens=PLENTY)
        assert (done["status"], done["result"]) == ("success", "did it")
        (row,) = client.get("/usage", params={"conversation_id": conversation}).json()["usage"]
        assert row["tokens"] == sum(done["usage"].values())


def test_resuming_is_refused_where_nothing_paused(client: httpx2.Client) -> None:
    conversation = chat(client, "hi")["conversation_id"]
    assert client.post(f"/chat/{conversation}/resume", json={"allow_tokens": 1}).status_code == 409
    assert client.post("/chat/conv-nobody/resume", json={"allow_tokens": 1}).status_code == 404
    for wrong in ({"allow_tokens": 0}, {"allow_tokens": "5"}, {"tokens": 5}):
        assert client.post(f"/chat/{conversation}/resume", json=wrong).status_code == 400


def test_a_resumption_with_a_key_happens_once(make_host: MakeHost) -> None:
    host = configure(make_host(), budgets={"run": {"tokens": 1}}).start()
    with host.client() as client:
        conversation = chat(client, "hi")["conversation_id"]
        path, key = f"/chat/{conversation}/resume", {"Idempotency-Key": "one"}
        answers = [client.post(path, json={"allow_tokens": PLENTY}, headers=key).json() for _ in range(2)]
        assert answers[0] == answers[1]
        assert answers[0]["status"] == "success"


def test_usage_is_listed_by_day_and_by_conversation(client: httpx2.Client) -> None:
    first, second = (chat(client, "count me") for _ in range(2))
    day = client.get("/usage").json()["usage"][0]
    assert day["conversation_id"] is None
    rows: list[dict[str, Any]] = []
    cursor: str | None = ""
    while cursor is not None:
        page = client.get("/usage", params={"by": "conversation", "limit": 3, "cursor": cursor}).json()
        rows += page["usage"]
        cursor = page["next_cursor"]
    by_id = {row["conversation_id"]: row for row in rows}
    assert len(by_id) == len(rows)
    for body in (first, second):
        assert by_id[body["conversation_id"]]["tokens"] == sum(body["usage"].values())
        assert by_id[body["conversation_id"]]["runs"] == 1
    assert day["tokens"] >= sum(row["tokens"] for row in rows)
    assert client.get("/usage", params={"by": "month"}).status_code == 400


def test_runs_at_once_do_not_count_on_the_same_tokens(make_host: MakeHost, model: ModelProcess) -> None:
    host = configure(make_host(), budgets={"day": {"tokens": 1}}).start()
    with host.client() as client:
        need = needed(chat(client, directive(text="a", hang_after_deltas=1)))
    host.stop()
    configure(host, budgets={"day": {"tokens": 2 * need + 8192}}).start()
    hang = {"message": directive(text="a", hang_after_deltas=1), "stream": True}
    with host.client() as client, host.client() as other:
        with client.stream("POST", "/chat", json=hang) as response:
            events = frames(response.iter_lines())
            conversation = next(events)[2]["conversation_id"]
            assert next(events)[1] == "chunk"
            assert model.requests()[-1]["body"]["max_tokens"] == 8192
            assert chat(other, "me too")["status"] == "success"
            assert 256 <= model.requests()[-1]["body"]["max_tokens"] < 1024
            assert chat(other, "and " * 2000)["status"] == "paused"
            assert other.post(f"/chat/{conversation}/cancel").status_code == 202


def test_the_offline_model_costs_nothing(make_host: MakeHost) -> None:
    host = configure(make_host(offline=True), budgets={"day": {"dollars": 0}}).start()
    with host.client() as client:
        assert chat(client, "hello")["status"] == "success"
        assert client.get("/usage").json()["usage"][0]["dollars"] == 0


def test_the_main_conversation_lets_a_paused_one_go_on(make_host: MakeHost) -> None:
    host = configure(make_host(), budgets={"conversation": {"tokens": 10}}).start()
    with host.client() as client:
        paused = chat(client, directive(text="Here I am"))["conversation_id"]
        chat(client, "hi", conversation_id="main")
        call = {"name": "approve_budget", "input": {"conversation_id": paused, "allow_tokens": PLENTY}}
        nobody = {"name": "approve_budget", "input": {"conversation_id": "conv-none", "allow_tokens": 1}}
        body = directive(steps=[{"tools": [call, nobody]}, {"text": "$results"}])
        resume(client, "main", allow_tokens=PLENTY)
        told = client.post("/chat", json={"message": body, "conversation_id": "main"}).json()
        assert told["status"] == "paused"
        told = resume(client, "main", allow_tokens=PLENTY)
        assert f"Conversation {paused} goes on" in told["result"]
        assert "conversation_id not found" in told["result"]
        until(lambda: client.get(f"/chat/{paused}").json()["status"] == "idle")
        listed = client.get(f"/chat/{paused}/messages").json()["messages"]
        assert [entry["content"] for entry in listed][1:] == ["Here I am"]


def test_only_people_in_the_main_conversation_are_offered_to_approve(
    make_host: MakeHost, model: ModelProcess
) -> None:
    host = make_host().start()
    task = {"prompt": "approve-task", "schedule_type": "interval", "schedule_value": "60000"}
    with host.client() as client:
        chat(client, "approve-other")
        chat(client, "approve-main", conversation_id="main")
        for mode in ("group", "isolated"):
            fields = {**task, "prompt": f"approve-{mode}", "context_mode": mode, "conversation_id": "main"}
            made = client.post("/task", json=fields).json()["id"]
            client.post("/task/trigger", json={"task_id": made})
    offered = {
        words: "approve_budget" in str(request["body"]["tools"])
        for request in model.requests()
        for words in ("approve-other", "approve-main", "approve-group", "approve-isolated")
        if words in str(request["body"]["messages"][-1])
    }
    assert offered == {
        "approve-other": False,
        "approve-main": True,
        "approve-group": False,
        "approve-isolated": False,
    }

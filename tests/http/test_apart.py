"""What one principal has is nothing to another: its ids are unknown ones, and its names are free."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx2
import pytest

from tests.http.two_principals import SETTINGS, TASK, Somebody, asking, settle, somebody
from tests.mcp.over_http import RawHttp, request
from tests.running import HostProcess, ModelProcess, new_host

ASKED = {"model": "picoclaw", "messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture(scope="module")
def host(model: ModelProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    process = new_host(tmp_path_factory.mktemp("apart"), model.url, SETTINGS)
    yield process.start()
    process.kill()


@pytest.fixture(scope="module")
def ann(host: HostProcess) -> Iterator[Somebody]:
    with somebody(host, "Ann") as who:
        yield settle(who, "apples")


@pytest.fixture(scope="module")
def bob(host: HostProcess) -> Iterator[Somebody]:
    with somebody(host, "Bob") as who:
        yield settle(who, "bananas")


@pytest.fixture
def operator(host: HostProcess) -> Iterator[httpx2.Client]:
    with host.client() as client:
        yield client


def of(listed: httpx2.Response, what: str, key: str = "id") -> set[str]:
    return {item[key] for item in listed.json()[what]}


def test_lists_hold_one_s_own_and_names_are_as_they_were_said(ann: Somebody, bob: Somebody) -> None:
    mine = of(ann.client.get("/chat"), "conversations", "conversation_id")
    theirs = of(bob.client.get("/chat"), "conversations", "conversation_id")
    assert mine & theirs == {"main"}
    assert {"main", ann.ids["conversation"]} <= mine
    assert of(ann.client.get("/tasks"), "tasks") & of(bob.client.get("/tasks"), "tasks") == {"daily"}
    assert ann.client.get("/task/daily").json()["prompt"] == "say apples"
    assert bob.client.get("/task/daily").json()["prompt"] == "say bananas"
    messages = bob.client.get("/chat/main/messages")
    assert "bananas" in messages.text
    assert not [word for word in ("apples", ann.id, bob.id) if word in messages.text]
    assert bob.client.get("/chat", params={"search": "apples"}).json()["conversations"] == []
    used = ann.client.get("/usage", params={"by": "conversation"})
    assert of(used, "usage", "conversation_id") <= mine | {ann.ids["task_conversation"]}


def test_the_operator_s_lists_are_its_own_unless_it_asks_for_others(
    operator: httpx2.Client, ann: Somebody, bob: Somebody
) -> None:
    assert ann.ids["conversation"] not in of(operator.get("/chat"), "conversations", "conversation_id")
    assert of(operator.get("/tasks"), "tasks").isdisjoint({ann.ids["task"], bob.ids["task"]})
    for path, what in (("/chat", "conversations"), ("/tasks", "tasks"), ("/usage", "usage")):
        theirs = operator.get(path, params={"principal_id": ann.id}).json()[what]
        assert theirs
        assert {item["principal_id"] for item in theirs} == {ann.id}
        assert "principal_id" not in json.dumps(operator.get(path).json()[what])
        assert ann.client.get(path, params={"principal_id": bob.id}).status_code == 403
        assert ann.client.get(path, params={"principal_id": ann.id}).status_code == 200
    everybody = operator.get("/tasks", params={"principal_id": "*"}).json()["tasks"]
    assert {ann.id, bob.id} <= {item["principal_id"] for item in everybody}
    assert operator.get(f"/chat/{ann.ids['conversation']}").json()["title"] == "about apples"
    assert operator.get(f"/chat/{ann.id}+main/messages").status_code == 200


def test_the_operator_speaks_in_another_s_conversation_as_that_one_s(
    operator: httpx2.Client, bob: Somebody
) -> None:
    said = {"message": "a word of the operator", "conversation_id": f"{bob.id}+main"}
    answer = operator.post("/chat", json=said)
    assert answer.status_code == 200
    named = {"X-Conversation-ID": f"{bob.id}+main"}
    asked = {**ASKED, "messages": [{"role": "user", "content": "another at the other door"}]}
    assert operator.post("/v1/chat/completions", json=asked, headers=named).status_code == 200
    theirs = bob.client.get("/chat/main/messages").text
    assert "a word of the operator" in theirs
    assert "another at the other door" in theirs
    paused = bob.chat(asking({"name": "ask_person", "input": {"question": "Which city?"}}))
    told = {"message": "Rome", "conversation_id": paused["conversation_id"], "deny_pending": True}
    assert operator.post("/chat", json=told).status_code == 200
    (question,) = paused["requests"]
    assert bob.client.get(f"/approvals/{question['id']}").json()["decided_by"]["principal_id"] == "operator"
    unknown = operator.post("/chat", json={"message": "hi", "conversation_id": "conv-x"})
    assert (unknown.status_code, unknown.json()["error"]) == (404, "conversation_id not found: conv-x")


def test_one_s_own_names_are_taken_within_oneself_alone(ann: Somebody, bob: Somebody) -> None:
    for who in (ann, bob):
        first = who.client.post("/task", json={**TASK, "id": "weekly"})
        assert (first.status_code, first.json()["id"]) == (201, "weekly")
        again = who.client.post("/task", json={**TASK, "id": "weekly"})
        assert (again.status_code, again.json()["error"]) == (409, "id exists already: weekly")
    key = {"Idempotency-Key": "one"}
    runs = [
        who.client.post("/chat", json={"message": "hi"}, headers=key).json()["run_id"] for who in (ann, bob)
    ]
    assert runs[0] != runs[1]
    refused = ann.client.delete("/chat/main")
    assert (refused.status_code, refused.json()["code"]) == (409, "main_conversation")


def test_events_say_names_as_they_were_said(ann: Somebody) -> None:
    with ann.client.stream(
        "POST", "/chat", json={"message": "hi", "conversation_id": "main", "stream": True}
    ) as answer:
        text = answer.read().decode()
    assert '"conversation_id":"main"' in text.replace(" ", "")
    assert ann.id not in text


def test_at_openai_s_door_a_name_leads_each_to_its_own(ann: Somebody, bob: Somebody) -> None:
    named = {"X-Conversation-ID": "trip"}
    answers = [who.client.post("/v1/chat/completions", json=ASKED, headers=named) for who in (ann, bob)]
    ids = [answer.headers["x-conversation-id"] for answer in answers]
    assert ids[0] != ids[1]
    again = ann.client.post("/v1/chat/completions", json={**ASKED, "user": "trip"})
    assert again.headers["x-conversation-id"] == ids[0]
    foreign = bob.client.post("/v1/chat/completions", json=ASKED, headers={"X-Conversation-ID": ids[0]})
    unknown = bob.client.post("/v1/chat/completions", json=ASKED, headers={"X-Conversation-ID": "conv-x"})
    assert foreign.status_code == unknown.status_code == 404
    assert foreign.text.replace(ids[0], "conv-x") == unknown.text
    # What both send again word for word stands for a conversation of each.
    first = [who.client.post("/v1/chat/completions", json=ASKED) for who in (ann, bob)]
    said = first[0].json()["choices"][0]["message"]["content"]
    resent = {
        **ASKED,
        "messages": [*ASKED["messages"], {"role": "assistant", "content": said}, *ASKED["messages"]],
    }
    found = [who.client.post("/v1/chat/completions", json=resent) for who in (ann, bob)]
    assert [one.headers["x-conversation-id"] for one in found] == [
        one.headers["x-conversation-id"] for one in first
    ]


def test_at_openai_s_door_one_sees_the_models_that_one_may_ask_for(host: HostProcess, ann: Somebody) -> None:
    with somebody(host, "Cid", models=["claude-haiku-4-5"]) as cid:
        listed = [each["id"] for each in cid.client.get("/v1/models").json()["data"]]
        assert listed == ["picoclaw", "claude-haiku-4-5"]
        asked = {**ASKED, "model": "claude-haiku-4-5"}
        assert cid.client.post("/v1/chat/completions", json=asked).status_code == 200
        (other,) = (each["id"] for each in ann.client.get("/v1/models").json()["data"][1:])
        assert cid.client.get(f"/v1/models/{other}").status_code == 404
        refused = cid.client.post("/v1/chat/completions", json={**ASKED, "model": other})
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")


def test_no_principal_lifts_a_budget_or_runs_everybody_s_tasks(host: HostProcess, ann: Somebody) -> None:
    lifted = ann.client.post("/chat/main/resume", json={"allow_tokens": 10})
    assert (lifted.status_code, lifted.json()["code"]) == (403, "forbidden")
    assert ann.client.post("/task/check", json={}).status_code == 403
    with somebody(host, "Cid", budgets={"day": {"tokens": 1}}) as cid:
        paused = cid.chat("hello")
    assert (paused["code"], "the operator has to approve more tokens" in paused["error"]) == ("budget", True)


def test_health_tells_counts_to_the_operator_alone(
    host: HostProcess, operator: httpx2.Client, ann: Somebody
) -> None:
    with host.client(None) as anybody:
        assert anybody.get("/health").json()["database"] == {"ok": True, "conversations": None, "tasks": None}
        assert anybody.get("/health").json()["scheduler"]["overdue"] is None
    assert ann.client.get("/health").json()["database"]["conversations"] is None
    assert operator.get("/health").json()["database"]["conversations"] > 0


def test_at_mcp_each_acts_for_its_own_main_conversation(
    host: HostProcess, ann: Somebody, bob: Somebody
) -> None:
    lists = {}
    for who in (ann, bob):
        with RawHttp(host, who.token["token"]) as client:
            client.hello()
            listed = client.say(request(1, "tools/call", {"name": "list_tasks", "arguments": {}}))
            assert listed.status_code == 200
            lists[who.id] = listed.text
            assert client.session is not None
            with RawHttp(host, (bob if who is ann else ann).token["token"]) as other:
                other.session = client.session
                assert other.say(request(2, "tools/list", {})).status_code == 404
    assert "say apples" in lists[ann.id]
    assert not {word for word in ("bananas", bob.id, ann.id) if word in lists[ann.id]}
    assert "apples" not in lists[bob.id]


def test_task_tools_at_mcp_need_the_scope_tasks(
    host: HostProcess, operator: httpx2.Client, ann: Somebody
) -> None:
    narrow = operator.post(f"/principals/{ann.id}/tokens", json={"scopes": ["mcp"]}).json()
    with RawHttp(host, narrow["token"]) as client:
        client.hello()
        tools = client.say(request(1, "tools/list", {})).json()["result"]["tools"]
        assert [tool["name"] for tool in tools] == ["send_message"]
        call = {"name": "list_tasks", "arguments": {}, "uri": "picoclaw://conversation"}
        refused = client.say(request(2, "tools/call", call))
        assert (refused.status_code, 'scope "tasks"' in refused.json()["error"]) == (403, True)
        assert client.say(request(3, "resources/read", {"uri": "picoclaw://tasks"})).status_code == 403

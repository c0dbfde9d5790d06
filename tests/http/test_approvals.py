"""Calls that wait for a person, over HTTP: asked, answered from anywhere, run once, nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.http.conftest import MakeHost, configure
from tests.running import HostProcess, ModelProcess, directive, until

RULES = [
    {"tool": "append_file", "match": "gated*", "do": "ask"},
    {"tool": "exec", "match": "git push *", "do": "ask"},
]


def append(path: str = "gated.txt") -> dict[str, Any]:
    return {"name": "append_file", "input": {"path": path, "content": "x"}}


def chat(client: httpx2.Client, message: str, **more: Any) -> dict[str, Any]:
    answer = client.post("/chat", json={"message": message, **more})
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def asking(*tools: dict[str, Any], text: str = "done: $results") -> str:
    return directive(steps=[{"tools": list(tools or [append()])}, {"text": text}])


def answered(
    client: httpx2.Client, request: dict[str, Any], decision: str = "allow", **more: Any
) -> httpx2.Response:
    body = {"decision": decision, "input_sha256": request["input_sha256"], **more}
    return client.post(f"/approvals/{request['id']}", json=body)


def last_run(client: httpx2.Client, conversation: str) -> dict[str, Any]:
    run: dict[str, Any] = client.get(f"/chat/{conversation}/runs").json()["runs"][0]
    return run


def ended(client: httpx2.Client, conversation: str) -> dict[str, Any]:
    """Wait until nothing runs or is about to; return the newest run."""
    until(lambda: client.get(f"/chat/{conversation}").json()["status"] != "running")
    return last_run(client, conversation)


def goes_on(client: httpx2.Client, told: dict[str, Any]) -> dict[str, Any]:
    """Wait for the run after one that paused; return it when it has ended."""
    path = f"/chat/{told['conversation_id']}/runs/{told['run_id']}"
    until(lambda: client.get(path).json()["next_run_id"])
    return ended(client, told["conversation_id"])


def written(host: HostProcess, name: str = "gated.txt") -> str:
    path = Path(host.environment["MEMORY_DIR"]) / name
    return path.read_text() if path.exists() else ""


@pytest.fixture
def gated(make_host: MakeHost) -> HostProcess:
    return configure(make_host(), permissions=RULES).start()


@pytest.fixture
def caller(gated: HostProcess) -> Iterator[httpx2.Client]:
    with gated.client() as client:
        yield client


def test_a_gated_call_waits_while_the_others_of_its_step_run(
    gated: HostProcess, caller: httpx2.Client
) -> None:
    told = chat(caller, asking(append("free.txt"), append()))
    assert (told["status"], told["code"]) == ("paused", "approval")
    (request,) = told["requests"]
    assert (request["kind"], request["tool"], request["input"]) == (
        "approval",
        "append_file",
        append()["input"],
    )
    assert (written(gated, "free.txt"), written(gated)) == ("x", "")
    about = caller.get(f"/chat/{told['conversation_id']}").json()
    assert (about["status"], about["pending"]) == ("waiting", 1)
    (listed,) = caller.get("/approvals", params={"status": "pending"}).json()["approvals"]
    assert listed == caller.get(f"/approvals/{request['id']}").json()
    assert {**listed, **request, "expires_at": listed["expires_at"]} == listed
    assert any(request["id"] in each["text"] for each in told["outbound_messages"])
    decided = answered(caller, request)
    assert decided.status_code == 200, decided.text
    assert (decided.json()["status"], decided.json()["decided_by"]["door"]) == ("allowed", "http")
    run = goes_on(caller, told)
    assert (run["status"], run["previous_run_id"], run["run_id"]) == (
        "success",
        told["run_id"],
        decided.json()["run_id"],
    )
    assert written(gated) == "x"
    shown = caller.get(f"/approvals/{request['id']}").json()
    assert (shown["status"], shown["next_run_id"]) == ("done", run["run_id"])
    assert caller.get(f"/chat/{told['conversation_id']}").json()["status"] == "idle"
    events = caller.get(f"/chat/{told['conversation_id']}/runs/{run['run_id']}/events").text
    assert "event: approval_resolved" in events


def test_a_denied_call_is_told_to_the_model_with_the_persons_words(
    gated: HostProcess, caller: httpx2.Client
) -> None:
    told = chat(caller, asking())
    answered(caller, told["requests"][0], "deny", message="not <today>")
    goes_on(caller, told)
    messages = caller.get(f"/chat/{told['conversation_id']}/messages").json()["messages"]
    assert "denied" in messages[-1]["content"]
    assert "not &lt;today&gt;" in messages[-1]["content"]
    assert written(gated) == ""


def test_of_twenty_answers_at_once_one_has_an_effect(gated: HostProcess, caller: httpx2.Client) -> None:
    told = chat(caller, asking())
    with ThreadPoolExecutor(20) as threads:
        answers = list(threads.map(lambda _: answered(caller, told["requests"][0]), range(20)))
    assert sorted(answer.status_code for answer in answers) == [200, *[409] * 19]
    late = next(answer.json() for answer in answers if answer.status_code == 409)
    assert (late["code"], late["decision"] in ("allowed", "done")) == ("already_decided", True)
    goes_on(caller, told)
    assert written(gated) == "x"


def test_bad_answers_are_told_apart(caller: httpx2.Client) -> None:
    told = chat(caller, asking())
    (request,) = told["requests"]
    changed = answered(caller, {**request, "input_sha256": "0" * 64})
    assert (changed.status_code, changed.json()["code"]) == (409, "changed")
    unseen = caller.post(f"/approvals/{request['id']}", json={"decision": "allow"})
    assert (unseen.status_code, unseen.json()["error"].partition(":")[0]) == (400, "input_sha256")
    assert answered(caller, request, "answer", message="x").status_code == 400
    assert answered(caller, request, "maybe").status_code == 400
    assert answered(caller, request, "deny", remember="conversation").status_code == 400
    assert answered(caller, {**request, "id": "appr-nobody"}).status_code == 404
    assert caller.get("/approvals/appr-nobody").status_code == 404
    assert caller.get("/approvals", params={"status": "perhaps"}).status_code == 400


def test_while_a_request_is_open_the_conversation_says_so(gated: HostProcess, caller: httpx2.Client) -> None:
    told = chat(caller, asking())
    conversation = told["conversation_id"]
    for answer in (
        caller.post("/chat", json={"message": "hello", "conversation_id": conversation}),
        caller.post(f"/chat/{conversation}/resume", json={}),
    ):
        assert (answer.status_code, answer.json()["code"]) == (409, "approval_pending")
        assert answer.json()["approval_ids"] == [told["requests"][0]["id"]]
    after = chat(caller, "hello", conversation_id=conversation, deny_pending=True)
    assert (after["status"], after["result"]) == ("success", "echo: hello")
    assert caller.get(f"/approvals/{told['requests'][0]['id']}").json()["status"] == "denied"
    assert written(gated) == ""


def test_what_waits_can_be_cancelled_and_deleted(caller: httpx2.Client) -> None:
    told = chat(caller, asking())
    assert caller.post(f"/chat/{told['conversation_id']}/cancel").status_code == 202
    assert last_run(caller, told["conversation_id"])["status"] == "cancelled"
    assert caller.get(f"/approvals/{told['requests'][0]['id']}").json()["status"] == "dropped"
    assert chat(caller, "on", conversation_id=told["conversation_id"])["status"] == "success"
    other = chat(caller, asking())
    assert caller.delete(f"/chat/{other['conversation_id']}").status_code == 204
    assert caller.get(f"/approvals/{other['requests'][0]['id']}").status_code == 404


def test_a_yes_is_remembered_for_the_same_call_of_the_conversation_alone(
    gated: HostProcess, caller: httpx2.Client
) -> None:
    told = chat(caller, asking())
    conversation = told["conversation_id"]
    answered(caller, told["requests"][0], remember="conversation")
    goes_on(caller, told)
    assert chat(caller, asking(), conversation_id=conversation)["status"] == "success"
    assert written(gated) == "xx"
    assert chat(caller, asking(append("gated2.txt")), conversation_id=conversation)["status"] == "paused"
    assert chat(caller, asking())["status"] == "paused"
    caller.post(f"/chat/{conversation}/cancel")
    assert len(caller.get(f"/chat/{conversation}/remembered").json()["remembered"]) == 1
    assert caller.delete(f"/chat/{conversation}/remembered").status_code == 204
    assert chat(caller, asking(), conversation_id=conversation)["status"] == "paused"


def test_a_question_is_answered_in_words(caller: httpx2.Client) -> None:
    call = {"name": "ask_person", "input": {"question": "Which city?", "options": ["Rome", "Oslo"]}}
    told = chat(caller, asking(call))
    (request,) = told["requests"]
    assert (told["code"], request["kind"], request["input"]) == ("question", "question", call["input"])
    assert answered(caller, request, "allow").status_code == 400
    assert answered(caller, request, "answer").status_code == 400
    assert answered(caller, request, "answer", message="Rome").json()["status"] == "answered"
    goes_on(caller, told)
    messages = caller.get(f"/chat/{told['conversation_id']}/messages").json()["messages"]
    assert "Rome" in messages[-1]["content"]


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({}, "question: field required"),
        ({"question": 5}, "question: input should be a valid string"),
        ({"question": "Which?", "timeout_ms": "soon"}, "timeout_ms: input should be a valid integer"),
        ({"question": "Which?", "options": "Rome"}, "options: input should be a valid list"),
    ],
)
def test_a_question_that_makes_no_sense_is_told_to_the_model(
    caller: httpx2.Client, wrong: dict[str, Any], why: str
) -> None:
    told = chat(caller, asking({"name": "ask_person", "input": wrong}))
    assert told["status"] == "success"
    assert why in told["result"]


def test_a_message_that_may_deny_is_the_answer_to_a_question(caller: httpx2.Client) -> None:
    call = {"name": "ask_person", "input": {"question": "Which city?"}}
    told = chat(caller, asking(call), model="claude-other")
    conversation = told["conversation_id"]
    refused = caller.post("/chat", json={"message": "Rome", "conversation_id": conversation})
    assert (refused.status_code, refused.json()["code"]) == (409, "approval_pending")
    after = chat(caller, "Rome", conversation_id=conversation, deny_pending=True)
    assert (after["status"], after["result"], after["model"]) == ("success", "echo: Rome", "claude-other")
    assert (after["previous_run_id"], after["root_run_id"]) == (told["run_id"], told["run_id"])
    answered = caller.get(f"/approvals/{told['requests'][0]['id']}").json()
    assert (answered["status"], answered["message"]) == ("answered", "Rome")
    by = answered["decided_by"]
    assert (by["principal_id"], by["door"], by["address"]) == ("operator", "http", "127.0.0.1")
    assert answered["next_run_id"] == after["run_id"]
    acts = caller.get("/audit", params={"action": "approval.answered"}).json()["audit"]
    assert (acts[0]["subject"], acts[0]["by"]["principal_id"]) == (answered["id"], "operator")


@pytest.mark.parametrize(
    ("said", "door"), [("console", "console"), ("cli", "cli"), ("telegram", "http"), (None, "http")]
)
def test_a_decision_keeps_the_program_through_which_it_came(
    caller: httpx2.Client, said: str | None, door: str
) -> None:
    told = chat(caller, asking())
    headers = {} if said is None else {"X-PicoClaw-Door": said}
    path = f"/approvals/{told['requests'][0]['id']}"
    caller.post(path, json={"decision": "deny"}, headers=headers)
    assert caller.get(path).json()["decided_by"]["door"] == door
    asked = chat(caller, asking())
    body = {"message": "no", "conversation_id": asked["conversation_id"], "deny_pending": True}
    caller.post("/chat", json=body, headers=headers)
    decided = caller.get(f"/approvals/{asked['requests'][0]['id']}").json()
    assert (decided["status"], decided["decided_by"]["door"]) == ("denied", door)


def test_a_task_whose_question_a_message_answers_takes_the_outcome_of_that_run(
    caller: httpx2.Client,
) -> None:
    for call, ended in (
        ({"name": "ask_person", "input": {"question": "Which?"}}, ("success", "echo: this one")),
        (append(), ("cancelled", None)),
    ):
        conversation = chat(caller, "hello")["conversation_id"]
        body = {"prompt": asking(call), "schedule_type": "once", "schedule_value": "2020-01-01T00:00:00"}
        where = {"conversation_id": conversation, "context_mode": "group", "run_if_past": True}
        task = caller.post("/task", json={**body, **where}).json()
        caller.post("/task/check", json={})
        assert caller.get(f"/task/{task['id']}/runs").json()["runs"][0]["status"] == "paused"
        chat(caller, "this one", conversation_id=conversation, deny_pending=True)
        (slot,) = caller.get(f"/task/{task['id']}/runs").json()["runs"]
        assert (slot["status"], slot["result"]) == ended


def test_a_request_makes_the_permissions_stricter_and_never_weaker(
    gated: HostProcess, caller: httpx2.Client
) -> None:
    everything = [{"tool": "*", "do": "allow"}]
    assert chat(caller, asking(), permissions=everything)["status"] == "paused"
    deny = [{"tool": "append_file", "do": "deny"}]
    told = chat(caller, asking(append("free.txt")), permissions=deny)
    assert (told["status"], written(gated, "free.txt")) == ("success", "")
    ask = [{"tool": "append_file", "do": "ask"}]
    told = chat(caller, asking(append("free.txt")), permissions=ask)
    answered(caller, told["requests"][0])
    goes_on(caller, told)
    assert written(gated, "free.txt") == "x"
    for wrong in (
        [{"tool": "apend_file", "do": "ask"}],
        [{"tool": "exec", "do": "perhaps"}],
        [{"do": "ask"}],
    ):
        answer = caller.post("/chat", json={"message": "hi", "permissions": wrong})
        assert (answer.status_code, answer.json()["error"].partition(".")[0]) == (400, "permissions")


def test_a_principal_s_permissions_count_beside_the_operator_s(make_host: MakeHost) -> None:
    weak = {"PICOCLAW_PRINCIPALS_ISOLATION": "weak"}
    host = configure(make_host(settings=weak), permissions=RULES).start()
    with host.client() as operator:
        asks = [{"tool": "write_file", "do": "ask"}, {"tool": "*", "do": "allow"}]
        ann = operator.post("/principals", json={"name": "Ann", "permissions": asks}).json()
        path = f"/principals/{ann['id']}"
        token = operator.post(f"{path}/tokens", json={"name": "phone"}).json()["token"]
        write = {"name": "write_file", "input": {"path": "a.txt", "content": "x"}}
        assert chat(operator, asking(write))["status"] == "success"
        with host.client(token) as client:
            assert chat(client, asking())["status"] == "paused"
            allow = [{"tool": "*", "do": "allow"}]
            told = chat(client, asking(write), permissions=allow)
            assert [request["tool"] for request in told["requests"]] == ["write_file"]
            deny = [{"tool": "write_file", "do": "deny"}]
            assert operator.patch(path, json={"permissions": deny}).json()["permissions"] == deny
            answered(client, told["requests"][0])
            assert goes_on(client, told)["status"] == "success"
            said = client.get(f"/chat/{told['conversation_id']}/messages").text
            assert "There is no tool named write_file" in said
            assert operator.patch(path, json={"permissions": None}).json()["permissions"] == []
            assert chat(client, asking(write))["status"] == "success"


def test_requests_are_listed_since_a_time(caller: httpx2.Client) -> None:
    times = [chat(caller, asking(append(f"gated{n}")))["requests"][0] for n in range(2)]
    made = [caller.get(f"/approvals/{each['id']}").json() for each in times]

    def since(text: str) -> list[str]:
        found = caller.get("/approvals", params={"since": text, "status": "pending"}).json()["approvals"]
        return [each["id"] for each in found]

    assert since(made[0]["created_at"]) == [each["id"] for each in made]
    assert since(made[1]["created_at"])[-1] == made[1]["id"]
    assert since("2999-01-01T00:00:00+01:00") == []
    for wrong in ("yesterday", "2026-01-31T09:30:00", "2026-13-01T00:00:00Z"):
        refused = caller.get("/approvals", params={"since": wrong})
        assert (refused.status_code, refused.json()["error"].partition(":")[0]) == (400, "since")


def test_what_the_sentence_shows_steers_nothing_and_the_input_stays_exact(caller: httpx2.Client) -> None:
    path = "gated\u202etxt\x9b1m.\u2066sh"
    told = chat(caller, asking(append(path)))
    (request,) = told["requests"]
    assert "gated\\u202etxt\\u009b1m.\\u2066sh" in told["error"]
    assert not set("\u202e\x9b\u2066") & set(told["error"])
    assert request["input"]["path"] == path


def test_what_the_run_was_asked_with_counts_after_the_answer(
    gated: HostProcess, caller: httpx2.Client, model: ModelProcess
) -> None:
    told = chat(
        caller,
        directive(
            "asked-with", steps=[{"tools": [append()]}, {"tools": [append("other.txt")]}, {"text": "end"}]
        ),
        model="claude-other",
        permissions=[{"tool": "append_file", "match": "other*", "do": "deny"}],
    )
    answered(caller, told["requests"][0])
    run = goes_on(caller, told)
    assert (run["status"], run["model"]) == ("success", "claude-other")
    assert (written(gated), written(gated, "other.txt")) == ("x", "")


def test_a_call_that_is_denied_by_the_time_it_runs_is_not_run(make_host: MakeHost) -> None:
    host = configure(make_host(), permissions=RULES).start()
    with host.client() as client:
        told = chat(client, asking())
    host.stop()
    configure(host, permissions=[{"tool": "append_file", "do": "deny"}]).start()
    with host.client() as client:
        answered(client, told["requests"][0])
        assert goes_on(client, told)["status"] == "success"
    assert written(host) == ""


def test_a_request_outlives_the_host_and_so_does_an_answer(make_host: MakeHost) -> None:
    host = configure(make_host(), permissions=RULES).start()
    with host.client() as client:
        told = chat(client, asking())
    host.kill()
    host.start()
    with host.client() as client:
        assert client.get("/approvals", params={"status": "pending"}).json()["approvals"]
        answered(client, told["requests"][0])
        host.kill()
    host.start()
    with host.client() as client:
        run = goes_on(client, told)
        until(
            lambda: (
                ended(client, told["conversation_id"])["status"] != "error" or run["code"] == "interrupted"
            )
        )
    assert len(written(host)) <= 1


def test_a_typo_in_the_operators_permissions_stops_the_start(make_host: MakeHost) -> None:
    host = configure(make_host(), permissions=[{"tool": "exce", "do": "ask"}]).start(wait=False)
    assert host.process is not None
    assert host.process.wait(60) != 0
    assert "permissions.0.tool: there is no tool named exce" in host.log_text


def test_a_budget_is_listed_and_allowed_at_the_same_door(make_host: MakeHost) -> None:
    host = configure(make_host(), budgets={"run": {"tokens": 10}}).start()
    with host.client() as client:
        told = chat(client, directive(text="Here I am"))
        (request,) = client.get("/approvals", params={"kind": "budget", "status": "pending"}).json()[
            "approvals"
        ]
        assert (request["run_id"], request["expires_at"]) == (told["run_id"], None)
        body = {"decision": "allow", "allow_tokens": 1_000_000}
        assert client.post(f"/approvals/{request['id']}", json=body).status_code == 200
        assert goes_on(client, told)["status"] == "success"
        (lifted,) = client.get("/audit", params={"action": "budget.lifted"}).json()["audit"]
        assert lifted["subject"] == told["conversation_id"]


def test_a_scheduled_task_that_waits_takes_the_outcome_of_the_last_run(
    gated: HostProcess, caller: httpx2.Client
) -> None:
    body = {
        "prompt": asking(text="all done"),
        "schedule_type": "once",
        "schedule_value": "2020-01-01T00:00:00",
    }
    task = caller.post("/task", json={**body, "run_if_past": True}).json()
    caller.post("/task/check", json={})
    (request,) = caller.get("/approvals", params={"status": "pending"}).json()["approvals"]
    (slot,) = caller.get(f"/task/{task['id']}/runs").json()["runs"]
    assert (slot["status"], caller.get(f"/task/{task['id']}").json()["status"]) == ("paused", "active")
    caller.post("/task/check", json={})
    assert len(caller.get("/approvals", params={"status": "pending"}).json()["approvals"]) == 1
    answered(caller, request)
    until(lambda: caller.get(f"/task/{task['id']}").json()["status"] == "completed")
    (slot,) = caller.get(f"/task/{task['id']}/runs").json()["runs"]
    assert (slot["status"], slot["result"]) == ("success", "all done")
    assert written(gated) == "x"


def test_an_idempotency_key_gives_the_same_answer_again(caller: httpx2.Client) -> None:
    told = chat(caller, asking())
    (request,) = told["requests"]
    body = {"decision": "allow", "input_sha256": request["input_sha256"]}

    def answer(_: int) -> httpx2.Response:
        return caller.post(f"/approvals/{request['id']}", json=body, headers={"Idempotency-Key": "k"})

    with ThreadPoolExecutor(5) as threads:
        at_once = list(threads.map(answer, range(5)))
    assert {each.status_code for each in at_once} == {200}
    later = answer(5).json()
    assert later == answer(6).json()
    assert [each.json()["decided_by"] for each in at_once] == [later["decided_by"]] * 5


def test_programs_that_speak_openais_api_are_told_what_waits_and_do_not_try_again(
    caller: httpx2.Client,
) -> None:
    said = [{"role": "user", "content": asking()}]
    named = {"X-Conversation-ID": "gated-chat"}
    body = {"model": "picoclaw", "messages": said}
    answer = caller.post("/v1/chat/completions", json=body, headers=named).json()
    (request,) = caller.get("/approvals", params={"status": "pending"}).json()["approvals"]
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert request["id"] in answer["choices"][0]["message"]["content"]
    more = {"model": "picoclaw", "messages": [*said, {"role": "user", "content": "and?"}]}
    refused = caller.post("/v1/chat/completions", json=more, headers=named)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "approval_pending")


@pytest.mark.parametrize("before", ["", "old\n"])
@pytest.mark.parametrize("tool", ["append_file", "write_file"])
def test_a_file_that_changed_since_it_was_asked_about_is_left_as_it_is(
    gated: HostProcess, caller: httpx2.Client, tool: str, before: str
) -> None:
    file = Path(gated.environment["MEMORY_DIR"]) / "gated.txt"
    if before:
        file.write_text(before)
    rules = [{"tool": tool, "do": "ask"}]
    more = {"overwrite": True} if tool == "write_file" else {}
    call = {"name": tool, "input": {"path": "gated.txt", "content": "x", **more}}
    told = chat(caller, asking(call), permissions=rules)
    seen = hashlib.sha256(before.encode()).hexdigest() if before else ""
    assert told["requests"][0]["base_sha256"] == seen
    file.write_text("somebody else's")
    assert answered(caller, told["requests"][0]).status_code == 200
    goes_on(caller, told)
    assert written(gated) == "somebody else's"
    again = chat(caller, asking(call), permissions=rules, conversation_id=told["conversation_id"])
    assert answered(caller, again["requests"][0]).status_code == 200
    goes_on(caller, again)
    assert written(gated) == ("x" if tool == "write_file" else "somebody else'sx")


def test_calls_that_change_no_file_have_no_base(caller: httpx2.Client) -> None:
    told = chat(caller, asking({"name": "exec", "input": {"command": "git push origin"}}))
    assert told["requests"][0]["base_sha256"] is None

"""Calls of subagents that wait for a person: the run pauses, and goes on with what the subagent had done."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from tests.http.conftest import MakeHost, configure
from tests.http.test_approvals import RULES, answered, append, chat, ended, goes_on, written
from tests.running import HostProcess, ModelProcess, directive, until

Step = dict[str, Any]


def steps(*made: Step, text: str) -> str:
    return directive(steps=[*made, {"text": text}])


def spawn(task: str, **more: Any) -> Step:
    return {"name": "spawn", "input": {"task": task, **more}}


def child(gated: str, text: str, *more: Step) -> str:
    """Return a task that does something free, then something gated, and then tells what came of that."""
    first = {"tools": [append(f"free-{gated}")]}
    return steps(first, {"tools": [append(gated)]}, *more, text=text)


@pytest.fixture
def gated(make_host: MakeHost) -> HostProcess:
    return configure(make_host(), permissions=RULES).start()


@pytest.fixture
def caller(gated: HostProcess) -> Iterator[httpx2.Client]:
    with gated.client() as client:
        yield client


def told(client: httpx2.Client, conversation: str) -> str:
    messages = client.get(f"/chat/{conversation}/messages").json()["messages"]
    return str(messages[-1]["content"])


def test_a_subagents_call_pauses_the_run_which_goes_on_without_losing_or_repeating_anything(
    gated: HostProcess, caller: httpx2.Client
) -> None:
    step = {"tools": [spawn(child("gated1", "one: $results")), append("free-own")]}
    paused = chat(caller, steps(step, text="all: $results"))
    assert (paused["status"], paused["code"]) == ("paused", "approval")
    (request,) = paused["requests"]
    assert (request["subagent"], request["tool"], request["input"]["path"]) == ("1", "append_file", "gated1")
    assert caller.get(f"/approvals/{request['id']}").json()["subagent"] == "1"
    assert "subagent 1: append_file" in paused["error"]
    assert [written(gated, name) for name in ("free-gated1", "gated1", "free-own")] == ["x", "", "x"]
    assert answered(caller, request).json()["status"] == "allowed"
    run = goes_on(caller, paused)
    assert (run["status"], run["previous_run_id"]) == ("success", paused["run_id"])
    assert "one: " in told(caller, paused["conversation_id"])
    assert [written(gated, name) for name in ("free-gated1", "gated1", "free-own")] == ["x", "x", "x"]
    assert caller.get(f"/approvals/{request['id']}").json()["status"] == "done"


def test_siblings_go_on_to_their_end_or_their_own_question_and_all_are_asked_at_once(
    gated: HostProcess, caller: httpx2.Client
) -> None:
    free = steps({"tools": [append("free-3")]}, text="three")
    calls = [spawn(child("gated1", "one: $results")), spawn(child("gated2", "two: $results")), spawn(free)]
    paused = chat(caller, steps({"tools": [*calls, append("gated3")]}, text="all: $results"))
    asked = {request["input"]["path"]: request for request in paused["requests"]}
    assert {path: request["subagent"] for path, request in asked.items()} == {
        "gated1": "1",
        "gated2": "2",
        "gated3": None,
    }
    assert written(gated, "free-3") == "x"
    answered(caller, asked["gated1"])
    answered(caller, asked["gated2"], "deny", message="not two")
    assert written(gated, "gated1") == ""
    answered(caller, asked["gated3"])
    assert goes_on(caller, paused)["status"] == "success"
    said = told(caller, paused["conversation_id"])
    assert "one: " in said
    assert "two: This call was not made: it was denied." in said
    assert "not two" in said
    assert [written(gated, f"gated{number}") for number in (1, 2, 3)] == ["x", "", "x"]


def test_a_subagent_that_has_to_ask_again_waits_again(gated: HostProcess, caller: httpx2.Client) -> None:
    second = {"tools": [append("gated2"), append("free-2")]}
    paused = chat(
        caller, steps({"tools": [spawn(child("gated1", "sub: $results", second))]}, text="all: $results")
    )
    answered(caller, paused["requests"][0])
    again = goes_on(caller, paused)
    assert again["status"] == "paused"
    (request,) = caller.get("/approvals", params={"status": "pending"}).json()["approvals"]
    assert (request["subagent"], request["input"]["path"], request["run_id"]) == (
        "1",
        "gated2",
        again["run_id"],
    )
    assert [written(gated, name) for name in ("gated1", "gated2", "free-2")] == ["x", "", "x"]
    answered(caller, request)
    assert goes_on(caller, {**paused, "run_id": again["run_id"]})["status"] == "success"
    assert "sub: " in told(caller, paused["conversation_id"])
    assert [written(gated, name) for name in ("gated1", "gated2", "free-2")] == ["x", "x", "x"]


def test_a_subagents_subagent_is_named_and_goes_on_too(gated: HostProcess, caller: httpx2.Client) -> None:
    below = steps(
        {"tools": [spawn(child("gated1", "deep: $results")), append("free-2")]}, text="mid: $results"
    )
    paused = chat(caller, steps({"tools": [spawn(below)]}, text="all: $results"))
    (request,) = paused["requests"]
    assert request["subagent"] == "1.1"
    answered(caller, request)
    assert goes_on(caller, paused)["status"] == "success"
    said = told(caller, paused["conversation_id"])
    assert said.startswith("all: mid: ")
    assert "deep: " in said
    assert [written(gated, name) for name in ("free-gated1", "gated1", "free-2")] == ["x", "x", "x"]


def test_a_subagent_outlives_its_host(make_host: MakeHost) -> None:
    host = configure(make_host(), permissions=RULES).start()
    with host.client() as client:
        paused = chat(
            client, steps({"tools": [spawn(child("gated1", "one: $results"))]}, text="all: $results")
        )
    host.kill()
    host.start()
    with host.client() as client:
        answered(client, paused["requests"][0])
        assert goes_on(client, paused)["status"] == "success"
        assert "one: " in told(client, paused["conversation_id"])
    assert [written(host, name) for name in ("free-gated1", "gated1")] == ["x", "x"]


def test_a_host_that_dies_while_a_subagent_goes_on_says_so_and_repeats_nothing(make_host: MakeHost) -> None:
    host = configure(make_host(settings={"LEASE_MS": "1000"}), permissions=RULES).start()
    hangs = {"tools": [{"name": "exec", "input": {"command": "sleep 600"}}]}
    with host.client() as client:
        task = child("gated1", "one: $results", hangs)
        paused = chat(client, steps({"tools": [spawn(task)]}, text="all: $results"))
        answered(client, paused["requests"][0])
        until(lambda: written(host, "gated1") == "x")
    host.kill()
    host.start()
    with host.client() as client:
        run = ended(client, paused["conversation_id"])
        assert (run["status"], run["code"]) == ("error", "interrupted")
        request = client.get(f"/approvals/{paused['requests'][0]['id']}").json()
        assert request["status"] == "interrupted"
        after = chat(client, "and now?", conversation_id=paused["conversation_id"])
        assert after["result"] == "echo: and now?"
    assert written(host, "gated1") == "x"


def test_what_a_message_or_a_cancel_ends_is_told_to_the_model_as_one_result(
    gated: HostProcess, caller: httpx2.Client, model: ModelProcess
) -> None:
    both = directive(steps=[{"tools": [append("gated1"), append("gated2")]}, {"text": "sub"}])
    paused = chat(caller, steps({"tools": [spawn(both)]}, text="all"))
    assert len(paused["requests"]) == 2
    after = chat(caller, "never mind", conversation_id=paused["conversation_id"], deny_pending=True)
    assert after["result"] == "echo: never mind"
    sent = model.requests()[-1]["body"]["messages"]
    results = [block for each in sent for block in each["content"] if block["type"] == "tool_result"]
    assert len(results) == 1
    assert "It waited with its call of append_file" in results[0]["content"][0]["text"]
    other = chat(caller, steps({"tools": [spawn(both)]}, text="all"))
    assert caller.post(f"/chat/{other['conversation_id']}/cancel").status_code == 202
    assert chat(caller, "on", conversation_id=other["conversation_id"])["status"] == "success"


def test_subagents_together_ask_no_more_than_a_step_may(gated: HostProcess, caller: httpx2.Client) -> None:
    many = directive(steps=[{"tools": [append(f"gated{n}") for n in range(20)]}, {"text": "sub: $results"}])
    paused = chat(caller, steps({"tools": [spawn(many), spawn(many)]}, text="all"))
    assert len(paused["requests"]) == 32


def test_a_subagent_makes_no_more_steps_than_it_may_over_all(
    gated: HostProcess, caller: httpx2.Client
) -> None:
    second = {"tools": [append("free-2")]}
    task = child("gated1", "never said", second, second)
    paused = chat(caller, steps({"tools": [spawn(task, max_iterations=3)]}, text="all: $results"))
    answered(caller, paused["requests"][0])
    goes_on(caller, paused)
    assert "The subagent did not finish: The run used its" in told(caller, paused["conversation_id"])
    assert written(gated, "free-2") == "x"

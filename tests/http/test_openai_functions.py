"""Functions of OpenAI's clients: the calling program carries them out, by the official client."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx2
import openai
import pytest
from openai.types.chat import ChatCompletion

from tests.http.conftest import MakeHost, configure
from tests.http.test_openai_door import ASSISTANT, door, gpt, said, user
from tests.http.two_principals import SETTINGS, somebody
from tests.running import ModelProcess, directive

__all__ = ["gpt"]

OSLO = {"name": "client__weather", "input": {"place": "Oslo"}}
ROME = {"name": "client__weather", "input": {"place": "Rome"}}
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a place",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}},
    },
}
CLOCK: Any = {"type": "function", "function": {"name": "clock"}}


def calling(*calls: dict[str, Any], text: str = "") -> Any:
    steps = [{"text": text, "tools": list(calls or [OSLO])}, {"text": "then: $results"}]
    return user(directive(steps=steps))


def ask(client: openai.OpenAI, messages: list[Any], **more: Any) -> ChatCompletion:
    answer: ChatCompletion = client.chat.completions.create(
        model=ASSISTANT, messages=messages, tools=[WEATHER], **more
    )
    return answer


def given(answer: ChatCompletion, *results: str) -> list[Any]:
    """The answer as programs send it again, and the results of its calls."""
    message = answer.choices[0].message
    calls = message.tool_calls or []
    found = [
        {"role": "tool", "tool_call_id": call.id, "content": result}
        for call, result in zip(calls, results, strict=False)
    ]
    return [message.model_dump(exclude_none=True), *found]


def bodies(model: ModelProcess) -> list[dict[str, Any]]:
    return [one["body"] for one in model.requests() if one["path"] == "/v1/messages"]


def refused(attempt: Callable[[], Any], param: str) -> str:
    with pytest.raises(openai.BadRequestError) as error:
        attempt()
    assert error.value.param == param
    return error.value.message


def test_a_call_is_told_and_the_run_goes_on_with_its_result(
    gpt: openai.OpenAI, client: httpx2.Client
) -> None:
    question = calling(text="let me look")
    first = ask(gpt, [question])
    (choice,) = first.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "let me look"
    (call,) = choice.message.tool_calls or []
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"place": "Oslo"})
    messages = [question, *given(first, "<b>snow</b>")]
    second = ask(gpt, messages)
    assert second.choices[0].finish_reason == "stop"
    assert second.choices[0].message.content == "then: <b>snow</b>"
    assert ask(gpt, messages).id == second.id  # sent again, it is the same answer
    raw = gpt.chat.completions.with_raw_response.create(
        model=ASSISTANT,
        messages=[*messages, said(str(second.choices[0].message.content)), user("and now?")],
    )
    stored = client.get(f"/chat/{raw.headers['x-conversation-id']}/messages").json()["messages"]
    assert [item["content"] for item in stored][-2:] == ["and now?", "echo: and now?"]
    assert len(stored) == 5


def test_a_stream_ends_with_the_calls(gpt: openai.OpenAI) -> None:
    question = calling(OSLO, ROME)
    with gpt.chat.completions.stream(model=ASSISTANT, messages=[question], tools=[WEATHER]) as stream:
        first = stream.get_final_completion()
    (choice,) = first.choices
    assert choice.finish_reason == "tool_calls"
    assert [json.loads(call.function.arguments) for call in choice.message.tool_calls or []] == [
        OSLO["input"],
        ROME["input"],
    ]
    calls = [
        {
            "id": call.id,
            "type": "function",
            "function": call.function.model_dump(include={"name", "arguments"}),
        }
        for call in choice.message.tool_calls or []
    ]
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "sun"} for call in calls]
    messages: list[Any] = [question, {"role": "assistant", "tool_calls": calls}, *results]
    pieces = gpt.chat.completions.create(model=ASSISTANT, messages=messages, tools=[WEATHER], stream=True)
    text = "".join(choice.delta.content or "" for piece in pieces for choice in piece.choices)
    assert text == "then: sun\nsun"


def test_the_hosts_own_calls_of_the_step_run_and_are_not_shown(gpt: openai.OpenAI) -> None:
    question = calling({"name": "list_dir", "input": {}}, OSLO)
    first = ask(gpt, [question])
    assert len(first.choices[0].message.tool_calls or []) == 1
    assert "snow" in str(ask(gpt, [question, *given(first, "snow")]).choices[0].message.content)


def test_a_missing_result_and_an_unknown_call_are_named(gpt: openai.OpenAI) -> None:
    question = calling(OSLO, ROME)
    first = ask(gpt, [question])
    calls = first.choices[0].message.tool_calls or []
    one = [question, *given(first, "snow")]
    assert calls[1].id in refused(lambda: ask(gpt, one), "tool_call_id")
    strange = [question, *given(first, "snow", "sun")]
    strange[-1] = {**strange[-1], "tool_call_id": "call_none"}
    assert "call_none" in refused(lambda: ask(gpt, strange), "tool_call_id")
    assert ask(gpt, [question, *given(first, "snow", "sun")]).choices[0].finish_reason == "stop"


def test_a_message_in_place_of_the_result_says_that_there_is_none(
    gpt: openai.OpenAI, model: ModelProcess, client: httpx2.Client
) -> None:
    question = calling()
    first = ask(gpt, [question], user="moved-on")
    ask(gpt, [question, *given(first), user("never mind")], user="moved-on")
    assert "without giving a result" in json.dumps(bodies(model)[-1]["messages"])
    late = [question, *given(first, "snow")]
    assert "denied" in refused(lambda: ask(gpt, late, user="moved-on"), "tool_call_id")


def test_a_message_may_come_with_the_result(gpt: openai.OpenAI, model: ModelProcess) -> None:
    question = calling()
    first = ask(gpt, [question])
    answer = ask(gpt, [question, *given(first, "snow"), user("be brief")])
    assert answer.choices[0].message.content == "echo: be brief"
    assert "snow" in json.dumps(bodies(model)[-1]["messages"])


def test_choices_of_functions_reach_the_model(gpt: openai.OpenAI, model: ModelProcess) -> None:
    weather: Any = {"type": "function", "function": {"name": "weather"}}

    def asked(choice: Any, **more: Any) -> dict[str, Any]:
        gpt.chat.completions.create(
            model=ASSISTANT, messages=[user("hi")], tools=[WEATHER, CLOCK], tool_choice=choice, **more
        )
        return bodies(model)[-1]

    def names(body: dict[str, Any]) -> set[str]:
        return {tool["name"] for tool in body["tools"] if tool["name"].startswith("client__")}

    free = asked("auto")
    assert ("tool_choice" in free, names(free)) == (False, {"client__weather", "client__clock"})
    assert names(asked("none")) == set()
    required = asked("required", reasoning_effort="high")
    assert (required["tool_choice"], "thinking" in required) == ({"type": "any"}, False)
    assert {tool["name"] for tool in required["tools"]} == {"client__weather", "client__clock"}
    named = asked(weather, parallel_tool_calls=False)
    assert named["tool_choice"] == {"type": "any", "disable_parallel_tool_use": True}
    assert [tool["name"] for tool in named["tools"]] == ["client__weather"]
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [weather]}}
    assert names(asked(allowed)) == {"client__weather"}
    single = asked("auto", parallel_tool_calls=False)
    assert single["tool_choice"] == {"type": "auto", "disable_parallel_tool_use": True}
    unknown = {"type": "function", "function": {"name": "nothing"}}
    assert "nothing" in refused(lambda: asked(unknown), "tool_choice")
    refused(lambda: asked({"type": "custom"}), "tool_choice")


def test_a_forced_call_is_for_the_first_reply_alone(gpt: openai.OpenAI, model: ModelProcess) -> None:
    question = calling()
    first = ask(gpt, [question], tool_choice="required")
    assert bodies(model)[-1]["tool_choice"] == {"type": "any"}
    gpt.chat.completions.create(
        model=ASSISTANT, messages=[question, *given(first, "snow")], tools=[WEATHER], tool_choice="auto"
    )
    assert "tool_choice" not in bodies(model)[-1]


def test_bounds_and_stops_reach_the_model_and_metadata_comes_back(
    gpt: openai.OpenAI, model: ModelProcess
) -> None:
    answer = gpt.chat.completions.create(
        model=ASSISTANT,
        messages=[user("hi")],
        max_completion_tokens=77,
        stop=["END", "\n\nUser:"],
        metadata={"ticket": "7"},
    )
    body = bodies(model)[-1]
    assert (body["max_tokens"], body["stop_sequences"]) == (77, ["END", "\n\nUser:"])
    assert answer.model_dump()["metadata"] == {"ticket": "7"}


def test_a_gate_of_the_operator_comes_first_and_is_said(make_host: MakeHost) -> None:
    rules = [{"tool": "list_dir", "do": "ask"}]
    host = configure(make_host(), permissions=rules).start()
    with door(host, max_retries=0) as gpt, host.client() as client:
        question = calling({"name": "list_dir", "input": {}}, OSLO)
        first = ask(gpt, [question])
        assert first.choices[0].finish_reason == "tool_calls"
        assert "POST /approvals" in str(first.choices[0].message.content)
        messages = [question, *given(first, "snow")]
        with pytest.raises(openai.BadRequestError) as waits:
            ask(gpt, messages)
        assert waits.value.code == "approval_pending"
        (asked,) = client.get("/approvals", params={"status": "pending"}).json()["approvals"]
        proof = {"decision": "allow", "input_sha256": asked["input_sha256"]}
        assert client.post(f"/approvals/{asked['id']}", json=proof).status_code == 200
        assert "snow" in str(ask(gpt, messages).choices[0].message.content)


def test_the_calls_of_others_are_unknown(make_host: MakeHost) -> None:
    host = make_host("two", SETTINGS).start()
    with somebody(host, "Ann") as ann, somebody(host, "Bob") as bob:
        clients = {}
        for who in (ann, bob):
            transport = httpx2.Client(trust_env=False)
            clients[who.id] = openai.OpenAI(
                base_url=f"{host.url}/v1", api_key=who.token["token"], max_retries=0, http_client=transport
            )
        question = calling()
        first = ask(clients[ann.id], [question])
        messages = [question, *given(first, "mine")]
        assert "there is no call" in refused(lambda: ask(clients[bob.id], messages), "tool_call_id")
        assert ask(clients[ann.id], messages).choices[0].message.content == "then: mine"
        for each in clients.values():
            each.close()


def test_results_survive_a_host_that_is_killed(make_host: MakeHost) -> None:
    host = make_host().start()
    question = calling()
    with door(host, max_retries=0) as gpt:
        first = ask(gpt, [question])
    host.kill()
    host.start()
    with door(host, max_retries=0) as gpt:
        answer = ask(gpt, [question, *given(first, "snow")])
        assert answer.choices[0].message.content == "then: snow"

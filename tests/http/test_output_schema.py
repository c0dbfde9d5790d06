"""Answers of a promised shape: with a schema every success is what it says, by every door."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import openai
import pydantic
import pytest

from tests.running import TOKEN, HostProcess, directive, frames, until

CAT = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "lives": {"type": "array", "items": {"type": "integer"}}},
    "required": ["name", "lives"],
    "additionalProperties": False,
}
MISO = {"name": "Miso", "lives": [1, 2]}
BAD = {"name": "Miso", "lives": [1, "two"]}
PATH = "output/lives/1: "


def final(value: Any) -> dict[str, Any]:
    """A step of the model: the call that gives the answer."""
    return {"text": "I am done, here it is.", "tools": [{"name": "final_answer", "input": value}]}


def chat(client: httpx2.Client, *steps: dict[str, Any], **more: Any) -> dict[str, Any]:
    body = {"message": directive(steps=list(steps)), "output_schema": CAT, **more}
    answer = client.post("/chat", json=body)
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


def test_the_answer_is_a_value_and_its_text_is_json(client: httpx2.Client) -> None:
    told = chat(client, {"tools": [{"name": "exec", "input": {"command": "echo hi"}}]}, final(MISO))
    assert (told["status"], told["output"]) == ("success", MISO)
    assert told["result"] == json.dumps(MISO, separators=(",", ":"))
    conversation = told["conversation_id"]
    messages = client.get(f"/chat/{conversation}/messages").json()["messages"]
    assert [message["content"] for message in messages][1:] == [told["result"]]
    run = client.get(f"/runs/{told['run_id']}").json()
    assert run["answer"]["output"] == MISO
    plain = client.post("/chat", json={"message": "and now?", "conversation_id": conversation}).json()
    assert plain["result"] == "echo: and now?"
    assert "output" not in plain


@pytest.mark.parametrize("bad", [final(BAD), {"text": "It is Miso."}, {"text": json.dumps(BAD)}])
def test_a_wrong_answer_is_mended_once_and_no_word_of_it_is_streamed(
    client: httpx2.Client, bad: dict[str, Any]
) -> None:
    body = {"message": directive(steps=[bad, final(MISO)]), "output_schema": CAT, "stream": True}
    told = list(frames(iter(client.post("/chat", json=body).text.splitlines())))
    chunks = [data["text"] for _, name, data in told if name == "chunk"]
    assert [json.loads(chunk) for chunk in chunks] == [MISO]
    assert told[-1][2]["output"] == MISO


def test_a_second_wrong_answer_ends_the_run_naming_the_path_and_resume_asks_once_more(
    client: httpx2.Client,
) -> None:
    told = chat(client, final(BAD), final(BAD), final(MISO))
    assert (told["status"], told["code"], told["result"]) == ("error", "output_invalid", "")
    assert PATH in told["error"]
    assert "output" not in told
    again = client.post(f"/chat/{told['conversation_id']}/resume", json={}).json()
    assert (again["status"], again["output"]) == ("success", MISO)


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(MISO),
        f"```json\n{json.dumps(MISO)}\n```",
        f"<internal>is it {{}}?</internal>{json.dumps(MISO)}[[PICOCLAW_SESSION_END]]",
        json.dumps({**MISO, "name": "<internal>the cat is</internal>Mi[[PICOCLAW_SESSION_END]]so"}),
    ],
)
def test_json_as_text_is_taken_without_what_people_do_not_see(client: httpx2.Client, text: str) -> None:
    told = chat(client, {"text": text})
    assert (told["status"], told["output"]) == ("success", MISO)
    assert told["session_end_marker_detected"] is ("SESSION_END" in text)


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "array", "items": {"$ref": "#/$defs/id"}, "$defs": {"id": {"type": "integer"}}}, [1, 2]),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, None),
        ({"type": "object", "properties": {"größe in m": {"type": "number"}}}, {"größe in m": 0.3}),
        (True, "anything"),
    ],
)
def test_answers_that_no_tool_takes_as_its_input_are_wrapped(
    client: httpx2.Client, schema: Any, value: Any
) -> None:
    told = chat(client, final({"value": value}), output_schema=schema)
    assert (told["status"], told["output"]) == ("success", value)


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"properties": {"a": {"type": "strin"}}}, "output_schema: properties/a/type: "),
        ({"properties": {"a": {"pattern": "(?=b)c"}}}, "output_schema: properties/a/pattern: "),
        ({"properties": {"a": {"$ref": "https://example.com/a"}}}, "output_schema: properties/a/$ref: "),
        ({"allOf": [{"$ref": "#/$defs/none"}]}, "output_schema: allOf/0/$ref: "),
        ({"$schema": "http://json-schema.org/draft-07/schema#"}, "output_schema: $schema: "),
        ({"enum": ["x" * 70_000]}, "output_schema: has at most 64 KiB"),
        ({"enum": [[1]] * 1001}, "output_schema: it has more than 1,000 parts"),
        ("object", "output_schema: must be a JSON Schema"),
    ],
)
def test_a_schema_that_cannot_be_used_is_refused_and_nothing_is_stored(
    client: httpx2.Client, schema: Any, said: str
) -> None:
    before = client.get("/health").json()["database"]["conversations"]
    task = {"prompt": "x", "schedule_type": "interval", "schedule_value": "3600000", "output_schema": schema}
    for path, body in (("/chat", {"message": "x", "output_schema": schema}), ("/task", task)):
        answer = client.post(path, json=body)
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"].startswith(said)
    assert client.get("/health").json()["database"]["conversations"] == before


def test_a_pause_keeps_the_schema_and_no_rule_holds_the_answer_up(client: httpx2.Client) -> None:
    rules = [{"tool": "*", "do": "ask"}]
    call = {"tools": [{"name": "exec", "input": {"command": "echo hi"}}]}
    told = chat(client, call, final(MISO), permissions=rules)
    assert (told["status"], told["code"], told["result"]) == ("paused", "approval", "")
    assert "output" not in told
    (request,) = told["requests"]
    answer = {"decision": "allow", "input_sha256": request["input_sha256"]}
    assert client.post(f"/approvals/{request['id']}", json=answer).status_code == 200

    def last() -> dict[str, Any]:
        found = client.get(f"/runs/{told['run_id']}", params={"wait_ms": 5000, "chain": "true"}).json()
        return found["answer"] or {}

    until(lambda: last().get("status") == "success")
    assert last()["output"] == MISO


def test_a_denying_rule_leaves_the_answer_alone(client: httpx2.Client) -> None:
    told = chat(client, final(MISO), permissions=[{"tool": "*", "do": "deny"}])
    assert told["output"] == MISO


def test_a_task_has_a_schema_of_its_own_and_its_log_the_output(client: httpx2.Client) -> None:
    home = client.post("/chat", json={"message": "hi"}).json()["conversation_id"]
    asked = {
        "prompt": directive(steps=[final(BAD), final(MISO)]),
        "schedule_type": "interval",
        "schedule_value": "3600000",
        "conversation_id": home,
        "output_schema": CAT,
    }
    task = client.post("/task", json=asked).json()
    assert task["output_schema"] == CAT
    done = client.post("/task/trigger", json={"task_id": task["id"]}).json()
    assert (done["status"], done["output"]) == ("success", MISO)
    assert [message["text"] for message in done["outbound_messages"]] == [done["result"]]
    (logged,) = client.get(f"/task/{task['id']}/runs").json()["runs"]
    assert (logged["output"], logged["result"]) == (MISO, done["result"])
    bad = client.put(f"/task/{task['id']}", json={"output_schema": {"type": 3}})
    assert (bad.status_code, bad.json()["error"].split(": ")[1]) == (400, "type")
    plain = client.put(f"/task/{task['id']}", json={"output_schema": None, "prompt": "hello"}).json()
    assert "output_schema" not in plain
    done = client.post("/task/trigger", json={"task_id": task["id"]}).json()
    assert done["result"] == "echo: hello"
    assert "output" not in done


def completion(client: httpx2.Client, response_format: Any, *steps: dict[str, Any]) -> httpx2.Response:
    messages = [{"role": "user", "content": directive(steps=list(steps))}]
    body = {"model": "picoclaw", "messages": messages, "response_format": response_format}
    return client.post("/v1/chat/completions", json=body)


NAMED = {"type": "json_schema", "json_schema": {"name": "cat", "strict": True, "schema": CAT}}


@pytest.mark.parametrize("wanted", [NAMED, {"type": "json_object"}])
def test_the_openai_door_takes_a_response_format(client: httpx2.Client, wanted: dict[str, Any]) -> None:
    said = {"tools": [{"name": "mcp__picoclaw__send_message", "input": {"text": "half way"}}]}
    told = completion(client, wanted, said, final(MISO)).json()
    (choice,) = told["choices"]
    assert json.loads(choice["message"]["content"]) == MISO
    assert choice["finish_reason"] == "stop"


def test_the_openai_door_never_gives_prose_for_a_schema(client: httpx2.Client) -> None:
    failed = completion(client, NAMED, final(BAD), {"text": "I can't."})
    assert (failed.status_code, failed.json()["error"]["code"]) == (500, "output_invalid")
    assert failed.headers["x-should-retry"] == "false"
    wrong = completion(client, {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": 3}}})
    assert wrong.status_code == 400
    assert wrong.json()["error"]["param"] == "response_format"


def test_the_official_client_parses_the_answer(host: HostProcess) -> None:
    class Cat(pydantic.BaseModel):
        name: str
        lives: list[int]

    client = openai.OpenAI(base_url=f"{host.url}/v1", api_key=TOKEN)
    said: Any = [{"role": "user", "content": directive(steps=[final(BAD), final(MISO)])}]
    told = client.chat.completions.parse(model="picoclaw", messages=said, response_format=Cat)
    assert told.choices[0].message.parsed == Cat.model_validate(MISO)
    with client.chat.completions.stream(model="picoclaw", messages=said, response_format=Cat) as stream:
        assert stream.get_final_completion().choices[0].message.parsed == Cat.model_validate(MISO)

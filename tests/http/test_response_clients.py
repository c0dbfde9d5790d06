"""/v1/responses by programs that no one here wrote, and by the document that they were made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shared import jsons
from tests.mcp.programs import NODE_PACKAGES, NPM, node, npm_ci, python_with, run
from tests.running import TOKEN, HostProcess, ModelProcess, directive

HERE = Path(__file__).parent / "clients"
CALL = {"name": "client__lookup", "input": {"q": "x"}}
SAID = {
    "plain": directive(text="hello there"),
    "steps": directive(
        steps=[
            {"text": "let me look", "tools": [{"name": "exec", "input": {"command": "echo hi"}}]},
            {"text": "there it is"},
        ]
    ),
    "call": directive(steps=[{"tools": [CALL]}, {"text": "got $results"}]),
    "typed": directive(steps=[{"tools": [{"name": "final_answer", "input": {"lives": 9}}]}]),
    "final": directive(steps=[{"tools": [{"name": "client__final_result", "input": {"lives": 9}}]}]),
    "thinking": directive(thinking="hm", text="so it is"),
    "failing": directive(status=400, error_type="invalid_request_error"),
}
LIVES = {"type": "object", "properties": {"lives": {"type": "integer"}}, "required": ["lives"]}


def text_of(response: dict[str, Any]) -> str:
    parts = [item["content"] for item in response["output"] if item["type"] == "message"]
    return " ".join(part["text"] for content in parts for part in content)


async def test_clients_in_their_default_modes_are_served_and_every_answer_is_as_the_document_says(
    host: HostProcess,
) -> None:
    wanted = {"type": "json_schema", "name": "cat", "schema": LIVES}
    door = jsons.dumps({"url": f"{host.url}/v1", "key": TOKEN, "said": SAID, "format": wanted})
    python = python_with(HERE / "responses.lock")
    seen = await run(python, str(HERE / "responses.py"), env={"DOOR": door, "PYTHONPATH": ""}, cwd=HERE)
    told = seen["document"]
    assert text_of(told["plain"]) == text_of(told["system"]) == text_of(told["apart"]) == "hello there"
    assert [item["type"] for item in told["streamed"]["output"]] == ["message", "picoclaw:exec", "message"]
    assert "hi" in told["streamed"]["output"][1]["output"]
    assert told["streamed"]["events"][-1] == "response.completed"
    assert (told["call"]["status"], text_of(told["called"])) == ("completed", "got 42")
    assert "response.function_call_arguments.done" in told["call_streamed"]["events"]
    assert "What is my name?" in text_of(told["turns"])
    assert jsons.loads(text_of(told["typed"])) == {"lives": 9}
    assert [item["type"] for item in told["reasoned"]["output"]] == ["reasoning", "message"]
    assert (told["failed"]["status"], told["failed"]["error"]["code"]) == ("failed", "model_error")
    assert told["background"]["status"] == "in_progress"
    assert (told["apart"]["store"], told["apart"]["temperature"], told["apart"]["metadata"]) == (
        False,
        0.2,
        {"a": "b"},
    )
    assert seen["agents"]["whole"] == seen["agents"]["streamed"] == "got found x"
    assert seen["pydantic_ai"] == {"called": "got found x", "typed": 9, "streamed": "hello there"}


@pytest.mark.skipif(NPM is None, reason="needs npm")
async def test_what_the_ai_sdk_refers_to_is_not_sent_again_and_the_model_knows_it(
    host: HostProcess, model: ModelProcess
) -> None:
    for packages in (NODE_PACKAGES, HERE / "node"):
        npm_ci(packages)
    door = {"url": f"{host.url}/v1", "key": TOKEN, "first": SAID["plain"], "second": directive(text="indeed")}
    client = str(HERE / "node" / "client.mjs")
    told = await run(node(), client, env={"DOOR": jsons.dumps(door)}, cwd=HERE / "node")
    assert told == {
        "texts": ["hello there", "indeed"],
        "kinds": [["user"], ["user", "item_reference", "user"]],
    }
    asked = jsons.dumps(model.requests()[-1]["body"]["messages"])
    assert asked.index("hello there") < asked.rindex("hello there") < asked.index("indeed")

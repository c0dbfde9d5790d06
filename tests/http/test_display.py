"""What people see of a run beside its text: end marker, thinking, tools; as the contract says, no more."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from tests.http.conftest import MakeHost
from tests.http.test_prompt import last_request
from tests.running import ModelProcess, directive, stream

MARKER = "[[PICOCLAW_SESSION_END]]"


def say(text: str) -> dict[str, Any]:
    return {"tools": [{"name": "mcp__picoclaw__send_message", "input": {"text": text}}]}


def test_the_end_marker_counts_in_what_send_message_says_and_stays_there(client: httpx2.Client) -> None:
    steps = [say(f"Bye {MARKER}"), {"text": "Done."}]
    body = client.post("/chat", json={"message": directive(steps=steps)}).json()
    assert body["session_end_marker"] == MARKER
    assert body["session_end_marker_detected"] is True
    assert [message["text"] for message in body["outbound_messages"]] == [f"Bye {MARKER}"]
    assert body["result"] == "Done."


def test_the_end_marker_inside_an_internal_part_does_not_count(client: httpx2.Client) -> None:
    text = f"On we go. <internal>{MARKER}</internal>"
    body = client.post("/chat", json={"message": directive(text=text)}).json()
    assert body["session_end_marker_detected"] is False


def test_the_end_marker_split_over_deltas_is_told_whole(client: httpx2.Client) -> None:
    told = list(stream(client, {"message": directive(deltas=["Bye [[PICO", "CLAW_SESSION", "_END]]"])}))
    assert "".join(data["text"] for _, name, data in told if name == "chunk") == f"Bye {MARKER}"
    assert told[-1][2]["session_end_marker_detected"] is True


@pytest.mark.parametrize(("marker", "detected"), [("", False), ("<<bye>>", True)])
def test_the_operator_chooses_the_end_marker_or_none(
    make_host: MakeHost, marker: str, detected: bool
) -> None:
    host = make_host(settings={"SESSION_END_MARKER": marker}).start()
    with host.client() as client:
        body = client.post("/chat", json={"message": directive(text=f"So long {MARKER} <<bye>>")}).json()
    assert body["session_end_marker"] == marker
    assert body["session_end_marker_detected"] is detected


def test_thinking_is_asked_of_the_model_only_when_asked_for(
    client: httpx2.Client, model: ModelProcess
) -> None:
    asked: list[tuple[dict[str, Any], bool]] = [
        ({}, False),
        ({"thinking": False, "max_thinking_tokens": 5000}, False),
        ({"thinking": True}, True),
        ({"thinking": True, "max_thinking_tokens": 5000}, True),
    ]
    for number, (fields, thinks) in enumerate(asked):
        words = f"thinking-number-{number}."
        message = directive(words, text="k", thinking="hm")
        body = client.post("/chat", json={"message": message, **fields}).json()
        assert ("thinking" in last_request(model, words)) is thinks
        assert "hm" not in body["result"]


def test_thinking_goes_back_to_the_model_with_its_signature_and_never_into_messages(
    client: httpx2.Client, model: ModelProcess
) -> None:
    steps = [{"thinking": "plan it", "tools": [{"name": "list_dir", "input": {}}]}, {"text": "done"}]
    message = directive("signed-thoughts", steps=steps)
    body = client.post("/chat", json={"message": message, "thinking": True}).json()
    [thought] = [
        block
        for one in last_request(model, "signed-thoughts")["messages"]
        for block in one["content"]
        if block["type"] == "thinking"
    ]
    assert (thought["thinking"], thought["signature"]) == ("plan it", "signed-by-the-fake")
    listed = client.get(f"/chat/{body['conversation_id']}/messages").json()["messages"]
    assert [one["content"] for one in listed if one["role"] == "assistant"] == ["done"]


def test_tools_are_shown_only_when_asked_for_with_their_input_and_a_bounded_preview(
    client: httpx2.Client,
) -> None:
    steps = [
        {"tools": [{"name": "exec", "input": {"command": "seq 1000"}}]},
        {"tools": [{"name": "read_file", "input": {"path": "not-there"}}]},
        {"text": "done"},
    ]
    shown = list(stream(client, {"message": directive(steps=steps), "show_tool_use": True}))
    tools = [(name, data) for _, name, data in shown if name.startswith("tool")]
    assert [name for name, _ in tools] == ["tool_use", "tool_result"] * 2
    assert tools[0][1] == {"tool": "exec", "input": {"command": "seq 1000"}}
    assert set(tools[1][1]) == {"tool", "is_error", "preview"}
    assert tools[1][1]["preview"].startswith("1\n2\n")
    assert len(tools[1][1]["preview"]) == 501
    assert tools[3][1]["is_error"] is True
    assert "tool_output" not in str(tools)
    hidden = list(stream(client, {"message": directive(steps=steps)}))
    assert {name for _, name, _ in hidden} == {"start", "chunk", "done"}

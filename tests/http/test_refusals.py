"""A conversation outlives whatever the model's API refuses, over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import UUID

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.agent.test_pictures import DATA, png
from tests.examples import examples
from tests.http.conftest import MakeHost, alone_on_the_store, configure
from tests.http.test_chat import chat
from tests.running import HostProcess, ModelProcess, directive, frames


def reading(path: str) -> dict[str, Any]:
    return {"tools": [{"name": "read_file", "input": {"path": path}}]}


def sent(model: ModelProcess, words: str) -> str:
    """Return the messages of the last request that has these words in it."""
    return next(
        str(one["body"]["messages"])
        for one in reversed(model.requests())
        if words in str(one["body"]["messages"])
    )


def workspace(host: HostProcess) -> Path:
    return Path(host.environment["MEMORY_DIR"])


@pytest.mark.parametrize(
    ("said", "status"),
    [
        ("image input is not supported", 400),
        ("Unprocessable", 422),
        ("this model takes no image_url", 500),
        ("messages.2.content.0.tool_result.content.1.image.source: Could not process image", 400),
    ],
)
def test_a_picture_that_the_api_refuses_is_left_out_from_then_on(
    client: httpx2.Client, host: HostProcess, model: ModelProcess, said: str, status: int
) -> None:
    (workspace(host) / "whole.png").write_bytes(DATA["png"])
    refused = {"status": status, "message": said, "times": 1, "text": "no picture then"}
    name = f"look-{status}-{len(said)}"
    told = chat(client, directive(name, steps=[reading("whole.png"), refused]))
    assert (told["status"], told["result"]) == ("success", "no picture then")
    assert any(said in warning for warning in told["warnings"])
    again = chat(client, f"hello again {name}", conversation_id=told["conversation_id"])
    assert again["result"].startswith("echo:")
    assert "warnings" not in again
    assert "'type': 'image'" not in sent(model, f"hello again {name}")


def test_a_refusal_in_the_middle_of_a_reply_begins_it_anew_without_the_picture(
    client: httpx2.Client, host: HostProcess
) -> None:
    (workspace(host) / "whole.png").write_bytes(DATA["png"])
    said = {"error_type": "invalid_request_error", "message": "no image input", "times": 1}
    refused = {"deltas": ["no pict", "ure then"], "error_after_deltas": 1, **said}
    told = chat(client, directive("look midway", steps=[reading("whole.png"), refused]))
    assert (told["status"], told["result"]) == ("success", "no picture then")
    assert any("no image input" in warning for warning in told["warnings"])


@pytest.mark.parametrize(
    ("data", "why"),
    [(DATA["png"][:8], "it is cut off"), (png(12000, 9000), "12000 x 9000 pixels")],
)
def test_a_picture_that_no_api_takes_is_not_sent_but_explained(
    client: httpx2.Client, host: HostProcess, model: ModelProcess, data: bytes, why: str
) -> None:
    (workspace(host) / "odd.png").write_bytes(data)
    told = chat(client, directive(f"odd-{len(data)}", steps=[reading("odd.png"), {"text": "$results"}]))
    assert why in told["result"]
    assert "base64" not in sent(model, f"odd-{len(data)}")


def test_a_server_with_a_small_window_gets_smaller_answers_and_stops_no_other_conversation(
    make_host: MakeHost, model: ModelProcess
) -> None:
    host = configure(make_host("vllm"), agents={"defaults": {"max_tokens": 16384}}).start()
    said = (
        "`max_tokens` is too large: 16384. This model's maximum context length is 16384 tokens and your "
        "request has 6000 input tokens (16384 > 16384 - 6000). None"
    )
    with host.client() as client:
        told = chat(client, directive("small window", status=400, message=said, times=1, text="fits"))
        assert (told["status"], told["result"]) == ("success", "fits")
        asked = [one["body"]["max_tokens"] for one in model.requests() if "small window" in str(one["body"])]
        assert asked[0] == 16384
        assert 256 <= asked[1] <= 10384
        assert chat(client, "somebody else")["status"] == "success"


def test_an_answer_that_was_cut_off_says_so_everywhere(client: httpx2.Client) -> None:
    told = chat(client, directive(text="half an ans", stop_reason="max_tokens"))
    assert (told["status"], told["stop_reason"]) == ("success", "max_tokens")
    assert any("max_tokens" in warning for warning in told["warnings"])
    run = client.get(f"/chat/{told['conversation_id']}/runs/{told['run_id']}").json()
    assert run["stop_reason"] == "max_tokens"
    body = {
        "model": "picoclaw",
        "messages": [{"role": "user", "content": directive(text="x", stop_reason="max_tokens")}],
    }
    answer = client.post("/v1/chat/completions", json=body).json()
    assert answer["choices"][0]["finish_reason"] == "length"
    assert chat(client, "hello")["stop_reason"] == "end_turn"


def test_calls_whose_ids_come_again_are_told_apart(client: httpx2.Client, model: ModelProcess) -> None:
    step = {"tools": [{"id": "call_0", "name": "list_dir", "input": {}}]}
    told = chat(client, directive("ids-again", steps=[step, step, step, {"text": "done"}]))
    assert told["status"] == "success"
    messages = sent(model, "ids-again")
    assert all(f"'id': '{name}'" in messages for name in ("call_0", "call_0_2", "call_0_3"))


SAID = st.sampled_from(
    [
        "image input is not supported",
        "thinking is not supported",
        "tool_use ids must be unique",
        "Bad request",
    ]
)
CALLS = st.sampled_from(
    [
        {"name": "read_file", "input": {"path": "whole.png"}},
        {"name": "read_file", "input": {"path": "cut.png"}},
        {"name": "read_file", "input": {"path": "missing"}},
        {"name": "no such.tool", "input": {}},
        {"name": "list_dir", "input_json": '{"path": "'},
        {"name": "list_dir", "input": {}, "id": "call_0"},
    ]
)
STATUS = st.sampled_from([400, 422, 500])
OK = {"text": st.just("ok"), "retry_after": st.just("0")}
THINKING, TIMES = {"thinking": st.just("hm")}, {"times": st.integers(1, 2)}
STEPS: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.fixed_dictionaries({"tools": st.lists(CALLS, min_size=1, max_size=3)}, optional=THINKING),
    st.fixed_dictionaries({"status": STATUS, "message": SAID, **OK}, optional=TIMES),
    st.sampled_from(
        [
            {"deltas": ["a", "b"], "truncate_after_deltas": 1, "times": 1},
            {"text": "half", "stop_reason": "max_tokens"},
            {"text": "no", "stop_reason": "refusal"},
            {"text": ""},
            {"thinking": "only"},
        ]
    ),
)


@given(st.lists(st.lists(STEPS, min_size=1, max_size=3), min_size=1, max_size=3), st.uuids())
@settings(max_examples=examples(15), suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_after_whatever_happened_a_plain_message_is_answered(
    client: httpx2.Client, host: HostProcess, turns: list[list[dict[str, Any]]], name: UUID
) -> None:
    (workspace(host) / "whole.png").write_bytes(DATA["png"])
    (workspace(host) / "cut.png").write_bytes(DATA["png"][:20])
    of: dict[str, str] = {}
    for steps in turns:
        of["conversation_id"] = chat(client, directive(str(name), steps=steps), **of)["conversation_id"]
    told = chat(client, "a plain message", **of)
    assert (told["status"], told["result"]) == ("success", "echo: a plain message")


@alone_on_the_store
def test_after_a_crash_at_any_step_a_plain_message_is_answered(
    make_host: MakeHost, model: ModelProcess
) -> None:
    host = make_host("crash").start()
    (workspace(host) / "whole.png").write_bytes(DATA["png"])
    hang = {"deltas": ["a", "b"], "hang_after_deltas": 1}
    sleeping = {"tools": [{"name": "exec", "input": {"command": "sleep 600"}}]}
    cut = [[hang], [{"thinking": "hm", **reading("whole.png")}, hang], [reading("whole.png"), sleeping]]
    conversations = []
    with host.client() as client:
        for number, steps in enumerate(cut):
            body = {
                "message": directive(f"crash-{number}", steps=steps),
                "stream": True,
                "show_tool_use": True,
            }
            with client.stream("POST", "/chat", json=body) as answer:
                told = frames(answer.iter_lines())
                conversations.append(next(told)[2]["conversation_id"])
                wanted = ["chunk", "chunk", "tool_result"][number]
                assert any(name == wanted for _, name, _ in told)
    host.kill()
    host.start()
    with host.client() as client:
        for conversation in conversations:
            told_now = chat(client, "a plain message", conversation_id=conversation)
            assert (told_now["status"], told_now["result"]) == ("success", "echo: a plain message")

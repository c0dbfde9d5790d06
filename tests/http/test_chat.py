"""POST /chat and reading, over a real host, a real store and a real tool server."""

from __future__ import annotations

import threading
from typing import Any

import httpx2
import pytest

from tests.running import TOKEN, HostProcess, ModelProcess, directive, frames, stream


def chat(client: httpx2.Client, message: str, **more: Any) -> dict[str, Any]:
    answer = client.post("/chat", json={"message": message, **more})
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def test_a_new_conversation_is_answered_with_everything_the_contract_names(client: httpx2.Client) -> None:
    body = chat(client, directive(text="Hello there"))
    assert body["status"] == "success"
    assert body["result"] == "Hello there"
    assert body["conversation_id"].startswith("conv-")
    assert body["message_id"].startswith("msg-")
    assert body["run_id"].startswith("run-")
    assert body["session_id"]
    assert body["usage"]["output_tokens"] > 0
    assert body["outbound_messages"] == []
    assert body["session_end_marker_detected"] is False
    assert body["duration_ms"] >= 0


def test_the_next_message_is_answered_with_the_history_before_it(
    client: httpx2.Client, model: ModelProcess
) -> None:
    first = chat(client, directive("the blue one", text="noted"))
    chat(client, "and now?", conversation_id=first["conversation_id"])
    sent = model.requests()[-1]["body"]["messages"]
    assert [message["role"] for message in sent] == ["user", "assistant", "user"]
    assert "the blue one" in sent[0]["content"][0]["text"]
    assert sent[1]["content"][0]["text"] == "noted"


def test_messages_are_listed_in_the_order_they_were_stored(client: httpx2.Client) -> None:
    first = chat(client, "one")
    conversation = first["conversation_id"]
    chat(client, "two", conversation_id=conversation, sender="ann", sender_name="Ann")
    listed = client.get(f"/chat/{conversation}/messages").json()
    assert [message["role"] for message in listed["messages"]] == ["user", "assistant"] * 2
    assert listed["messages"][2]["content"] == "two"
    assert listed["messages"][2]["sender_name"] == "Ann"
    assert listed["next_cursor"] is None
    page = client.get(f"/chat/{conversation}/messages", params={"limit": 3}).json()
    rest = client.get(f"/chat/{conversation}/messages", params={"cursor": page["next_cursor"]}).json()
    assert page["messages"] + rest["messages"] == listed["messages"]
    view = client.get(f"/chat/{conversation}").json()
    assert (view["message_count"], view["status"]) == (4, "idle")
    runs = client.get(f"/chat/{conversation}/runs").json()["runs"]
    assert [run["status"] for run in runs] == ["success", "success"]
    assert client.get(f"/chat/{conversation}/runs/{runs[0]['run_id']}").json() == runs[0]


def test_the_newest_conversation_is_listed_first_and_pages_join_without_gaps(client: httpx2.Client) -> None:
    ids = [chat(client, "hi")["conversation_id"] for _ in range(3)]
    listed = [entry["conversation_id"] for entry in client.get("/chat").json()["conversations"]]
    assert listed[:3] == ids[::-1]
    paged: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        page = client.get("/chat", params={"limit": 2, "cursor": cursor}).json()
        paged += [entry["conversation_id"] for entry in page["conversations"]]
        cursor = page["next_cursor"]
    assert paged == listed


def test_an_unknown_conversation_is_not_found(client: httpx2.Client) -> None:
    answer = client.post("/chat", json={"message": "hi", "conversation_id": "conv-nobody"})
    assert answer.status_code == 404
    assert answer.json()["error"] == "conversation_id not found: conv-nobody"
    assert client.get("/chat/conv-nobody").status_code == 404
    assert client.get("/chat/conv-nobody/messages").status_code == 404
    assert client.delete("/chat/conv-nobody").status_code == 404


def test_the_main_conversation_always_exists_and_cannot_be_deleted(client: httpx2.Client) -> None:
    assert client.get("/chat/main").status_code == 200
    assert chat(client, "hi", conversation_id="main")["conversation_id"] == "main"
    assert client.delete("/chat/main").status_code == 409


def test_joined_chunks_are_the_result_with_every_space_kept(client: httpx2.Client) -> None:
    deltas = ["  Hello", " ", "wor", "ld\n\n", "  - a", "\n", "  - b  ", "\n"]
    told = list(stream(client, {"message": directive(deltas=deltas)}))
    chunks = "".join(data["text"] for _, name, data in told if name == "chunk")
    done = told[-1][2]
    assert told[0][1] == "start"
    assert told[-1][1] == "done"
    assert chunks == "".join(deltas)
    assert done["result"] == chunks.strip()
    assert [number for number, _, _ in told] == list(range(1, len(told) + 1))


def test_internal_parts_never_leave_even_split_over_deltas(client: httpx2.Client) -> None:
    deltas = ["Yes", " <int", "ernal>sec", "ret</inter", "nal> indeed", " 1 < 2 <i", "nt>"]
    told = list(stream(client, {"message": directive(deltas=deltas)}))
    chunks = "".join(data["text"] for _, name, data in told if name == "chunk")
    assert chunks == "Yes  indeed 1 < 2 <int>"
    assert told[-1][2]["result"] == chunks
    conversation = told[0][2]["conversation_id"]
    assert "secret" not in client.get(f"/chat/{conversation}/messages").text


def test_a_run_writes_files_runs_commands_schedules_and_speaks_while_it_works(client: httpx2.Client) -> None:
    steps = [
        {"text": "On it.", "tools": [{"name": "write_file", "input": {"path": "a.txt", "content": "hi\n"}}]},
        {"tools": [{"name": "exec", "input": {"command": "cat a.txt; pwd"}}]},
        {
            "tools": [
                {"name": "mcp__picoclaw__send_message", "input": {"text": "half <internal>x</internal>way"}},
                {
                    "name": "mcp__picoclaw__schedule_task",
                    "input": {"prompt": "look", "schedule_type": "cron", "schedule_value": "0 9 * * *"},
                },
            ]
        },
        {"text": "All done: $results"},
    ]
    told = list(stream(client, {"message": directive(steps=steps), "show_tool_use": True}))
    names = [name for _, name, _ in told]
    assert names.index("message") < names.index("done")
    results = [data for _, name, data in told if name == "tool_result"]
    assert [result["is_error"] for result in results] == [False] * 4, results
    assert "hi" in results[1]["preview"]
    message = next(data for _, name, data in told if name == "message")
    assert message["text"] == "half way"
    done = told[-1][2]
    assert done["outbound_messages"][0]["id"] == message["id"]
    chunks = "".join(data["text"] for _, name, data in told if name == "chunk")
    assert chunks.startswith("On it.\n\nAll done")
    assert done["result"] == chunks.strip()
    tasks = client.get("/tasks", params={"conversation_id": done["conversation_id"]}).json()["tasks"]
    assert [task["prompt"] for task in tasks] == ["look"]


def test_thinking_is_told_only_when_it_was_asked_for(client: httpx2.Client) -> None:
    message = directive(text="42", thinking="let me see")
    with_thinking = list(stream(client, {"message": message, "thinking": True}))
    without = list(stream(client, {"message": message}))
    assert "".join(data["text"] for _, name, data in with_thinking if name == "thinking") == "let me see"
    assert not [name for _, name, _ in without if name == "thinking"]


def test_a_busy_conversation_refuses_and_stores_nothing(client: httpx2.Client, host: HostProcess) -> None:
    first = chat(client, "hello")
    conversation = first["conversation_id"]
    with client.stream(
        "POST",
        "/chat",
        json={"message": directive(hang=True), "conversation_id": conversation, "stream": True},
    ) as response:
        events = frames(response.iter_lines())
        assert next(events)[1] == "start"
        before = client.get(f"/chat/{conversation}/messages").json()
        for streamed in (True, False):
            refused = client.post(
                "/chat", json={"message": "me too", "conversation_id": conversation, "stream": streamed}
            )
            assert refused.status_code == 409
            body = refused.json()
            assert body["error"] == f"Conversation {conversation} is currently processing another request"
            assert body["conversation_id"] == conversation
        assert client.get(f"/chat/{conversation}/messages").json() == before
        assert client.get(f"/chat/{conversation}").json()["status"] == "running"
        assert client.delete(f"/chat/{conversation}").status_code == 409
        assert client.post(f"/chat/{conversation}/cancel").status_code == 202
        assert [name for _, name, _ in events][-1] == "done"
    assert client.post(f"/chat/{conversation}/cancel").status_code == 409
    assert client.get(f"/chat/{conversation}").json()["status"] == "idle"


def test_two_conversations_run_side_by_side(host: HostProcess) -> None:
    barrier = threading.Barrier(2, timeout=60)
    answers: list[str] = []

    def talk(text: str) -> None:
        with host.client() as client:
            for number, name, data in stream(client, {"message": directive(text=text, delay_ms=100)}):
                if number == 1:
                    # Both have started before either goes on, or the barrier breaks.
                    barrier.wait()
                if name == "done":
                    answers.append(data["result"])

    threads = [threading.Thread(target=talk, args=(text,)) for text in ("left", "right")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(answers) == ["left", "right"]


def test_a_timeout_is_a_timeout_and_keeps_the_finished_steps(client: httpx2.Client) -> None:
    steps = [
        {"text": "step one", "tools": [{"name": "list_dir", "input": {}}]},
        {"text": "never", "hang": True},
    ]
    body = chat(client, directive(steps=steps), max_execution_ms=700)
    assert body["status"] == "timeout"
    assert body["code"] == "timeout"
    assert body["result"] == "step one"
    listed = client.get(f"/chat/{body['conversation_id']}/messages").json()["messages"]
    assert [message["content"] for message in listed][1:] == ["step one"]
    follow_up = chat(client, "go on", conversation_id=body["conversation_id"])
    assert follow_up["status"] == "success"


def test_a_deleted_conversation_leaves_nothing(client: httpx2.Client) -> None:
    body = chat(client, "hello")
    conversation = body["conversation_id"]
    task = client.post(
        "/task",
        json={
            "prompt": "x",
            "schedule_type": "interval",
            "schedule_value": "60000",
            "conversation_id": conversation,
        },
    ).json()
    assert client.delete(f"/chat/{conversation}").status_code == 204
    assert client.get(f"/chat/{conversation}").status_code == 404
    assert client.get(f"/task/{task['id']}").status_code == 404


def test_the_session_end_marker_is_detected_and_left_in_place(client: httpx2.Client) -> None:
    body = chat(client, directive(text="Bye. [[PICOCLAW_SESSION_END]]"))
    assert body["session_end_marker_detected"] is True
    assert "[[PICOCLAW_SESSION_END]]" in body["result"]


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_scheme_is_case_insensitive(host: HostProcess, scheme: str) -> None:
    with host.client(None) as client:
        answer = client.get("/chat", headers={"Authorization": f"{scheme} {TOKEN}"})
        assert answer.status_code == 200


def test_a_secret_of_the_host_that_the_model_says_is_taken_out_everywhere(client: httpx2.Client) -> None:
    steps = [
        {
            "text": f"The token is {TOKEN}.",
            "tools": [{"name": "exec", "input": {"command": f"echo {TOKEN}"}}],
        },
        {"deltas": ["sk-test", "-canary", " $results"]},
    ]
    told = list(stream(client, {"message": directive(steps=steps), "show_tool_use": True}))
    listed = client.get(f"/chat/{told[0][2]['conversation_id']}/messages").text
    for secret in (TOKEN, "sk-test-canary"):
        assert secret not in str(told[1:])
        assert secret not in listed
    assert "[redacted]" in told[-1][2]["result"]


@pytest.mark.parametrize("beyond", [0, 1, 1000])
def test_a_reader_who_is_past_the_end_is_told_that_it_is_the_end(client: httpx2.Client, beyond: int) -> None:
    events = list(stream(client, {"message": directive(text="fine")}))
    conversation, run = events[0][2]["conversation_id"], events[0][2]["run_id"]
    last, name, body = events[-1]
    path = f"/chat/{conversation}/runs/{run}/events"
    with client.stream("GET", path, headers={"Last-Event-ID": str(last + beyond)}) as response:
        again = list(frames(response.iter_lines()))
    assert [(event, data) for _, event, data in again] == [(name, body)]


def test_a_reader_who_is_ahead_of_a_run_hears_its_end(client: httpx2.Client) -> None:
    hanging = {"message": directive(text="a", hang_after_deltas=1), "stream": True}
    with client.stream("POST", "/chat", json=hanging) as first:
        start = next(frames(first.iter_lines()))[2]
        path = f"/chat/{start['conversation_id']}/runs/{start['run_id']}/events"
        with client.stream("GET", path, headers={"Last-Event-ID": "100000"}) as ahead:
            assert client.post(f"/chat/{start['conversation_id']}/cancel").status_code == 202
            assert list(frames(ahead.iter_lines()))[-1][1] == "done"


def test_the_last_message_is_said_again_in_other_words(client: httpx2.Client, model: ModelProcess) -> None:
    first = chat(client, "one")
    made = first["conversation_id"]
    wrong = chat(client, "tow", conversation_id=made)
    started = client.get(f"/chat/{made}/runs/{wrong['run_id']}").json()
    again = chat(client, "two", conversation_id=made, replaces=started["message_id"])
    listed = client.get(f"/chat/{made}/messages").json()["messages"]
    assert [message["content"] for message in listed] == ["one", "echo: one", "two", "echo: two"]
    assert client.get(f"/chat/{made}").json()["message_count"] == 4
    assert again["session_id"] != first["session_id"]
    chat(client, "three", conversation_id=made)
    sent = str(model.requests()[-1]["body"]["messages"])
    assert "two" in sent
    assert "tow" not in sent


def test_a_failed_message_is_tried_again_without_standing_there_twice(client: httpx2.Client) -> None:
    made = chat(client, "one")["conversation_id"]
    failing = directive("again", status=400)
    client.post("/chat", json={"message": failing, "conversation_id": made})
    run = client.get(f"/chat/{made}/runs").json()["runs"][0]
    assert (run["status"], run["code"]) == ("error", "model_error")
    chat(client, "again", conversation_id=made, replaces=run["message_id"])
    listed = client.get(f"/chat/{made}/messages").json()["messages"]
    assert [message["content"] for message in listed][2:] == ["again", "echo: again"]


@pytest.mark.parametrize("replaces", ["msg-none", "msg-\U0001f600"])
def test_what_is_not_the_last_message_is_not_replaced(client: httpx2.Client, replaces: str) -> None:
    made = chat(client, "one")["conversation_id"]
    body = {"message": "x", "replaces": replaces}
    for more in ({"conversation_id": made}, {}):
        refused = client.post("/chat", json={**body, **more})
        assert (refused.status_code, refused.json()["code"]) == (409, "not_last_message")
        assert replaces in refused.json()["error"]
    assert client.get(f"/chat/{made}").json()["message_count"] == 2


def test_a_conversation_gets_a_name_and_is_found_by_it(client: httpx2.Client) -> None:
    made = chat(client, "where to go")["conversation_id"]
    named = client.patch(f"/chat/{made}", json={"title": "Trip to Åland"})
    assert named.json()["title"] == "Trip to Åland"
    for search in ("ÅLAND", "where TO", made):
        found = client.get("/chat", params={"search": search}).json()["conversations"]
        assert [item["conversation_id"] for item in found] == [made], search
    assert client.get("/chat", params={"search": "Bornholm"}).json()["conversations"] == []
    assert client.patch(f"/chat/{made}", json={"title": None}).json()["title"] is None
    assert client.get("/chat", params={"search": "a\x00"}).json()["error"].startswith("search: ")


@pytest.mark.parametrize("title", ["", "  ", "x" * 201, 7, "a\x00"])
def test_a_name_that_is_none_is_refused(client: httpx2.Client, title: Any) -> None:
    made = chat(client, "hi")["conversation_id"]
    refused = client.patch(f"/chat/{made}", json={"title": title})
    assert refused.status_code == 400
    assert refused.json()["error"].startswith("title: ")
    assert client.patch("/chat/conv-none", json={"title": "x"}).status_code == 404
    assert client.patch(f"/chat/{made}", json={}).status_code == 400

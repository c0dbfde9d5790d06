"""What a run works on is never lost; what is left unsaid, cut or refused is never called an answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx2
import pytest

from host.agent.loop import MOST_FAILURES, TOLD_AFTER
from host.runs.recorder import NO_ANSWER
from tests.http.conftest import MakeHost, configure
from tests.http.test_long_conversations import FILLER, all_messages, is_summary, long_host, requests_of, say
from tests.running import ModelProcess, directive, stream

Step = dict[str, Any]

READ: Step = {"name": "read_file", "input": {"path": "part.txt"}}
MISSING: Step = {"name": "read_file", "input": {"path": "nowhere.txt"}}
WISH = "Read part.txt twenty-five times & count the <notes>, then tell the codeword PLUM-7."


def chat(client: httpx2.Client, message: str, **more: Any) -> dict[str, Any]:
    answer = client.post("/chat", json={"message": message, **more})
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


@pytest.fixture(autouse=True)
def fresh_model(model: ModelProcess) -> None:
    model.forget()


def sent_since(model: ModelProcess, mark: str) -> list[Any]:
    """The messages of the requests that are about the mark."""
    bodies = [request["body"]["messages"] for request in model.requests()]
    return [messages for messages in bodies if mark in json.dumps(messages)]


# --- the message that a run works on


@pytest.mark.parametrize(
    ("name", "notes", "warned"),
    [
        ("good", "", False),
        ("overloaded", '@@summary {"status": 529}', True),
        ("empty", '@@summary {"text": ""}', True),
        ("going-on", '@@summary {"text": "Let me go on.", "tools": [{"name": "list_dir"}]}', True),
        (
            "cut",
            '@@summary {"text": "They spoke of a few things and then", "stop_reason": "max_tokens"}',
            True,
        ),
        ("short", '@@summary {"text": "OK."}', True),
        ("refused", '@@summary {"text": "I would rather not do this.", "stop_reason": "refusal"}', True),
    ],
)
def test_a_run_longer_than_the_window_knows_its_message_word_for_word_in_each_request(
    make_host: MakeHost, model: ModelProcess, name: str, notes: str, warned: bool
) -> None:
    host = long_host(make_host, name).start()
    Path(host.environment["MEMORY_DIR"], "part.txt").write_text("FACT-part " + FILLER * 15)
    model.script(*({"tools": [READ] * 2, "text": FILLER * 10} for _ in range(25)), {"text": "all read"})
    with host.client() as client:
        told = say(client, None, f"{WISH} {notes}")
        assert (told["status"], told["result"][-8:]) == ("success", "all read"), told
        assert any("could not be summed up" in each for each in told.get("warnings", ())) is warned, told
        conversation = told["conversation_id"]
        asked = requests_of(model, host)
        assert any(map(is_summary, asked))
        words = WISH.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        assert all(words in json.dumps(request["messages"]).replace("\\n", "\n") for request in asked)
        assert all(
            '<message sender="user"' in json.dumps(each["messages"]).replace("\\", "") for each in asked
        )
        for request in filter(is_summary, asked):
            assert request["tools"]
            assert request["tool_choice"] == {"type": "none"}
        after = say(client, conversation, "and now?")
        assert (after["status"], after["result"]) == ("success", "echo: and now?")
        assert len(all_messages(client, conversation)) == 4


def test_of_a_long_message_head_and_tail_stand(make_host: MakeHost, model: ModelProcess) -> None:
    host = long_host(make_host, "long-wish").start()
    Path(host.environment["MEMORY_DIR"], "part.txt").write_text("FACT-part " + FILLER * 15)
    model.script(*({"tools": [READ] * 2, "text": FILLER * 10} for _ in range(12)), {"text": "all read"})
    with host.client() as client:
        told = say(client, None, f'BEGIN-1 {FILLER * 100} @@summary {{"status": 400}} END-1')
    assert told["status"] == "success", told
    asked = [json.dumps(each["messages"]) for each in requests_of(model, host)]
    assert all("BEGIN-1" in each and "END-1</message>" in each for each in asked)
    assert "characters were left out to save room" in asked[-1]


def test_notes_that_are_none_are_asked_for_once_more_and_then_taken(
    make_host: MakeHost, model: ModelProcess
) -> None:
    host = long_host(make_host, "again").start()
    first = '@@summary {"status": 529, "times": 1}'
    with host.client() as client:
        conversation = None
        for number in range(14):
            told = say(client, conversation, f"turn {number} FACT-{number} {first} {FILLER * 14}")
            conversation = told["conversation_id"]
            assert "warnings" not in told
        assert 'kind="summary"' in client.get("/metrics").text
    assert "FACT-0" in json.dumps(requests_of(model, host)[-1]["messages"])


# --- refusals


def test_what_the_model_refused_is_not_sent_again_and_the_conversation_lives(
    client: httpx2.Client, model: ModelProcess
) -> None:
    first = chat(client, "hello there")
    conversation = first["conversation_id"]
    steps = [
        {"tools": [{"name": "list_dir", "input": {}}], "text": "FORBIDDEN-2 indeed"},
        {"text": "I can't", "stop_reason": "refusal"},
    ]
    refused = chat(client, directive("FORBIDDEN-1", steps=steps), conversation_id=conversation)
    assert (refused["status"], refused["code"]) == ("error", "refused")
    assert refused["usage"]["output_tokens"] >= 3, "a refused reply is paid for"
    model.forget()
    assert chat(client, "and now?", conversation_id=conversation)["result"] == "echo: and now?"
    (sent,) = sent_since(model, "hello there")
    assert "FORBIDDEN" not in json.dumps(sent)
    assert "refused to answer" in json.dumps(sent)
    shown = client.get(f"/chat/{conversation}/messages").json()["messages"]
    assert [each.get("refused", False) for each in shown] == [False, False, True, True, False, False]
    assert "FORBIDDEN-1" in shown[2]["content"]


def test_a_refused_turn_stays_out_after_a_restart(make_host: MakeHost, model: ModelProcess) -> None:
    host = make_host("refused").start()
    with host.client() as client:
        told = chat(client, directive("FORBIDDEN-3", text="", stop_reason="refusal"))
        assert told["code"] == "refused"
    host.stop()
    host.start()
    with host.client() as client:
        after = chat(client, "are you there?", conversation_id=told["conversation_id"])
        assert after["status"] == "success"
    assert "FORBIDDEN" not in json.dumps(model.requests()[-1]["body"]["messages"])


@pytest.mark.parametrize("of", [{"conversation_id": "main"}, {}])
def test_what_is_refused_for_an_older_message_is_answered_again_in_the_end(
    make_host: MakeHost, model: ModelProcess, of: dict[str, str]
) -> None:
    host = make_host("poison").start()
    with host.client() as client:
        of = {"conversation_id": chat(client, "the very first", **of)["conversation_id"]}
        assert chat(client, "@@poison", **of)["status"] == "success"
        told = [chat(client, f"again {number}", **of) for number in range(5)]
        assert [each.get("code") for each in told] == ["refused", "refused", None, None, None]
        assert ["warnings" in each for each in told] == [False, True, False, False, False]
        assert "earlier messages" in told[1]["warnings"][0]
        assert "the very first" in json.dumps(model.requests()[-1]["body"]["messages"])


def test_notes_that_are_refused_are_left_out_once_no_message_is_left_to_refuse(
    make_host: MakeHost, model: ModelProcess
) -> None:
    host = long_host(make_host, "poisoned-notes").start()
    notes = "They spoke of " + FILLER * 3 + "FACT-notes"
    with host.client() as client:
        told = say(client, None, f'@@antidote @@summary {{"text": "{notes} @@poison"}}')
        conversation = told["conversation_id"]
        for _ in range(20):
            assert say(client, conversation, "@@antidote " + FILLER * 60)["status"] == "success"
            if "<earlier_conversation>" in json.dumps(requests_of(model, host)[-1]["messages"][0]):
                break
        assert "FACT-notes" in json.dumps(requests_of(model, host)[-1]["messages"][0])
        codes = [say(client, conversation, f"again {number}").get("code") for number in range(8)]
        assert codes[0] == "refused"
        assert codes[-1] is None
        assert "FACT-notes" not in json.dumps(requests_of(model, host)[-1]["messages"])


# --- answers without words


@pytest.mark.parametrize(
    "step",
    [
        {"text": ""},
        {"text": "", "thinking": "I am done"},
        {"text": " \n"},
        {"text": "", "stop_reason": "pause_turn"},
    ],
)
@pytest.mark.parametrize("before", [[], [{"tools": [{"name": "list_dir", "input": {}}]}]])
def test_an_answer_without_words_is_asked_for_once(
    client: httpx2.Client, model: ModelProcess, step: Step, before: list[Step]
) -> None:
    model.script(*before, step, {"text": "I looked, and there is nothing."})
    told = chat(client, "WORDLESS look")
    assert (told["status"], told["result"]) == ("success", "I looked, and there is nothing.")
    assert "warnings" not in told
    model.forget()
    chat(client, "next", conversation_id=told["conversation_id"])
    (sent,) = sent_since(model, "WORDLESS")
    assert sent[-2]["content"][-1]["text"] == "I looked, and there is nothing."
    assert "has no text" in json.dumps(sent[-3]), "the thinking behind it knows it too"


def test_a_model_that_stays_silent_is_told_to_people_as_that(
    client: httpx2.Client, model: ModelProcess
) -> None:
    model.script({"text": ""}, {"text": ""})
    told = chat(client, "say something")
    assert (told["status"], told["result"], told["warnings"]) == ("success", NO_ANSWER, [NO_ANSWER])
    model.script(
        {"text": "I'll look.", "tools": [{"name": "list_dir", "input": {}}]},
        {"text": ""},
        {"text": ""},
    )
    events = list(stream(client, {"message": "look", "conversation_id": told["conversation_id"]}))
    shown = "".join(data["text"] for _, name, data in events if name == "chunk")
    assert shown == f"I'll look.\n\n{NO_ANSWER}" == events[-1][2]["result"]
    chat(client, "next", conversation_id=told["conversation_id"])
    assert NO_ANSWER not in json.dumps(model.requests()[-1]["body"]["messages"]), "it is the host's sentence"


def test_silence_that_is_meant_is_left_alone(client: httpx2.Client, model: ModelProcess) -> None:
    said = {"name": "mcp__picoclaw__send_message", "input": {"text": "It is done."}}
    for steps in ([{"tools": [said]}, {"text": ""}], [{"text": "<internal>nothing to say</internal>"}]):
        model.script(*steps)
        told = chat(client, "quietly, please")
        assert (told["status"], told["result"]) == ("success", "")
        assert "warnings" not in told
    assert len(model.requests()) == 3


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("max_tokens", "cut off at max_tokens"),
        ("model_context_window_exceeded", "end of the model's window"),
        ("a_reason_of_tomorrow", "a_reason_of_tomorrow"),
    ],
)
def test_an_answer_that_did_not_come_to_its_end_says_so(
    client: httpx2.Client, model: ModelProcess, reason: str, said: str
) -> None:
    conversation = chat(client, "hello")["conversation_id"]
    chat(client, "how are you?", conversation_id=conversation)
    # The window's end is met with a shorter conversation once; what comes then counts.
    model.script(*[{"text": "Once upon a", "stop_reason": reason}] * 2)
    told = chat(client, "a long story", conversation_id=conversation)
    assert (told["status"], told["result"]) == ("success", "Once upon a")
    assert [said in warning for warning in told["warnings"]] == [True]


def test_a_first_answer_that_meets_the_windows_end_is_the_answer(
    client: httpx2.Client, model: ModelProcess
) -> None:
    model.script({"text": "Once upon a", "stop_reason": "model_context_window_exceeded"})
    told = chat(client, "a long story")
    assert (told["status"], told["result"]) == ("success", "Once upon a")
    assert ["end of the model's window" in warning for warning in told["warnings"]] == [True]
    assert len(model.requests()) == 1
    (run,) = client.get(f"/chat/{told['conversation_id']}/runs").json()["runs"]
    assert run["usage"] == told["usage"]
    assert told["usage"]["output_tokens"] > 0


def test_pauses_without_an_end_come_to_one(make_host: MakeHost, model: ModelProcess) -> None:
    host = make_host("pauses")
    configure(host, agents={"defaults": {"max_tool_iterations": 3}}).start()
    model.script(*[{"text": "wait", "stop_reason": "pause_turn"}] * 3)
    with host.client() as client:
        told = chat(client, "for ever")
    assert (told["status"], told["code"]) == ("error", "iteration_limit")


# --- calls that lead nowhere


@pytest.mark.parametrize("written", ['{"path": "a.txt", "content": "once up', "", '{"path": "a.txt"'])
def test_a_call_cut_at_max_tokens_is_told_why_and_the_second_ends_the_run(
    client: httpx2.Client, model: ModelProcess, written: str
) -> None:
    cut = {"tools": [{"name": "write_file", "input_json": written}], "stop_reason": "max_tokens"}
    model.script(cut, cut, {"text": "never"})
    told = chat(client, "a long file")
    assert (told["status"], told["code"]) == ("error", "max_tokens")
    first, second = model.requests()
    result = second["body"]["messages"][-1]["content"][0]
    assert result["is_error"] is True
    (text,) = [part["text"] for part in result["content"]]
    assert f"{first['body']['max_tokens']:,} tokens" in text
    assert "append_file" in text
    model.forget()
    assert chat(client, "go on", conversation_id=told["conversation_id"])["status"] == "success"


def test_a_cut_call_that_is_made_in_parts_is_no_ending(client: httpx2.Client, model: ModelProcess) -> None:
    cut = {"tools": [{"name": "write_file", "input_json": '{"path": "a'}], "stop_reason": "max_tokens"}
    part = {"name": "append_file", "input": {"path": "parts.txt", "content": "one"}}
    model.script(cut, {"tools": [part]}, {"text": "written"})
    assert chat(client, "a long file")["result"] == "written"


@pytest.mark.parametrize(
    "calls",
    [
        [MISSING],
        [MISSING, {"name": "list_dir", "input": {}}],
        [MISSING] * 3,
        [{"name": "exec", "input": {"command": "echo no; exit 3"}}],
        [{"name": "no_such_tool", "input": {}}],
        [{"name": "read_file", "input_json": "[1"}],
        [MISSING, {"name": "write_file", "input": {"path": "same.txt", "content": "x", "overwrite": True}}],
    ],
    ids=[
        "alone",
        "beside another",
        "thrice at once",
        "command",
        "unknown",
        "malformed",
        "beside an old effect",
    ],
)
def test_a_call_that_fails_again_and_again_ends_the_run(
    client: httpx2.Client, model: ModelProcess, calls: list[Step]
) -> None:
    model.script(*[{"tools": calls}] * 20)
    told = chat(client, "try hard")
    assert (told["status"], told["code"]) == ("error", "no_progress")
    asked = [request["body"]["messages"] for request in model.requests()]
    assert len(asked) in (MOST_FAILURES, MOST_FAILURES + 1)
    notes = ["failed in the same way" in json.dumps(messages[-1]) for messages in asked]
    assert notes.index(True) in (TOLD_AFTER, TOLD_AFTER + 1)
    assert all(notes[TOLD_AFTER + 1 :])
    model.forget()


def test_failures_between_which_something_new_is_done_are_progress(
    client: httpx2.Client, model: ModelProcess
) -> None:
    steps = [
        {
            "tools": [
                MISSING,
                {"name": "append_file", "input": {"path": "progress.txt", "content": f"{number}\n"}},
            ]
        }
        for number in range(12)
    ]
    model.script(*steps, {"text": "got there"})
    assert chat(client, "work")["result"] == "got there"


# --- subagents


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ([{"text": ""}, {"text": ""}], "The subagent ended without an answer."),
        ([{"text": "Half of the rep", "stop_reason": "max_tokens"}], "was cut off at max_tokens"),
        ([{"text": "no", "stop_reason": "refusal"}], "declined"),
    ],
)
def test_a_subagent_without_a_whole_answer_is_told_to_its_parent(
    client: httpx2.Client, model: ModelProcess, steps: list[Step], said: str
) -> None:
    model.script({"tools": [{"name": "spawn", "input": {"task": "look"}}]}, *steps, {"text": "understood"})
    assert chat(client, "hand it on")["result"] == "understood"
    (result,) = model.requests()[-1]["body"]["messages"][-1]["content"]
    assert result["is_error"] is True
    assert said in json.dumps(result)

"""Conversations longer than the model's window: summed up, cheap per turn, and nothing lost."""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.http.conftest import MakeHost, configure
from tests.running import HostProcess, ModelProcess, directive, stream, until

WINDOW = 12_000
FILLER = "The meeting went on for a while and nothing of note was said by anybody there. "


@pytest.fixture(autouse=True)
def fresh_model(model: ModelProcess) -> None:
    """Forget what other tests asked, which would all be sent again with each look."""
    model.forget()


def long_host(make_host: MakeHost, name: str = "own", window: int = WINDOW, **history: Any) -> HostProcess:
    host = make_host(name, {"CLAUDE_MODEL": f"fake-{name}-window-{window}"})
    return configure(host, agents={"defaults": {"max_tokens": 1000}}, history={"window": window, **history})


def say(client: httpx2.Client, conversation: str | None, message: str) -> dict[str, Any]:
    body = (
        {"message": message}
        if conversation is None
        else {"message": message, "conversation_id": conversation}
    )
    answer = client.post("/chat", json=body)
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


def talk(client: httpx2.Client, messages: list[str], conversation: str | None = None) -> str:
    for message in messages:
        told = say(client, conversation, message)
        assert told["status"] == "success", told
        conversation = told["conversation_id"]
    assert conversation is not None
    return conversation


def requests_of(model: ModelProcess, host: HostProcess) -> list[dict[str, Any]]:
    name = host.environment["CLAUDE_MODEL"]
    return [request["body"] for request in model.requests() if (request["body"] or {}).get("model") == name]


def is_summary(request: dict[str, Any]) -> bool:
    return "<host_request>" in str(request["messages"][-1])


def all_messages(client: httpx2.Client, conversation: str) -> list[dict[str, Any]]:
    found, cursor = [], ""
    while cursor is not None:
        page = client.get(
            f"/chat/{conversation}/messages", params={"cursor": cursor} if cursor else {}
        ).json()
        found += page["messages"]
        cursor = page["next_cursor"]
    return found


def tokens_sent(told: dict[str, Any]) -> int:
    return sum(number for kind, number in told["usage"].items() if kind != "output_tokens")


def archive_of(host: HostProcess, conversation: str) -> list[Path]:
    return sorted((host.root / "memory" / "conversations" / conversation).glob("*"))


def test_two_hundred_turns_cost_the_same_each_and_the_first_facts_survive(
    make_host: MakeHost, model: ModelProcess
) -> None:
    host = long_host(make_host, "many").start()
    sent: list[int] = []
    with host.client() as client:
        conversation = None
        for number in range(200):
            fact = f"FACT-{number}" if number < 3 else "nothing new"
            told = say(client, conversation, f"turn {number}: {fact}. {FILLER * 2}")
            assert told["status"] == "success", told
            conversation = told["conversation_id"]
            sent.append(tokens_sent(told))
        assert conversation is not None
        last = [request for request in requests_of(model, host) if not is_summary(request)][-1]
        said = str(last["messages"])
        assert all(f"FACT-{number}" in said for number in range(3))
        assert len(all_messages(client, conversation)) == 400
        view = client.get(f"/chat/{conversation}").json()
        assert view["compactions"] >= 3
        assert view["compacted_at"] is not None
        metrics = client.get("/metrics").text
        assert 'picoclaw_compactions_total{kind="summary"}' in metrics
    # A turn with a compaction sends the conversation twice; none is ever larger than the window.
    assert max(sent) <= 2 * WINDOW
    ordinary = sorted(sent[100:])
    assert ordinary[len(ordinary) // 2] <= 0.8 * WINDOW
    assert sum(sent[100:]) <= 1.3 * sum(sent[:100])
    files = archive_of(host, conversation)
    assert len(files) == view["compactions"]
    text = "".join(file.read_text() for file in files)
    assert text.count("turn 0: FACT-0") == 2, "once asked, once echoed"


def test_between_two_compactions_the_prefix_stays_the_same(make_host: MakeHost, model: ModelProcess) -> None:
    host = long_host(make_host, "stable").start()
    with host.client() as client:
        talk(client, [f"turn {number} {FILLER * 5}" for number in range(60)])
    changes = 0
    asked = [request for request in requests_of(model, host) if not is_summary(request)]
    for earlier, later in itertools.pairwise(asked):
        before, after = unmarked(earlier["messages"]), unmarked(later["messages"])
        changes += after[: len(before)] != before
    summaries = sum(is_summary(request) for request in requests_of(model, host))
    assert summaries >= 2
    assert changes == summaries


def unmarked(messages: list[dict[str, Any]]) -> list[Any]:
    text = json.dumps(messages).replace(', "cache_control": {"type": "ephemeral"}', "")
    found: list[Any] = json.loads(text)
    return found


def test_a_summary_that_fails_leaves_the_oldest_turns_out_and_the_run_goes_on(
    make_host: MakeHost, model: ModelProcess
) -> None:
    host = long_host(make_host, "failing").start()
    broken = '@@summary {"status": 400}'
    with host.client() as client:
        conversation = talk(client, [f"first {broken} FACT-1"])
        warnings: list[str] = []
        for number in range(14):
            told = say(client, conversation, f"turn {number} {broken} {FILLER * 14}")
            assert told["status"] == "success", told
            warnings += told.get("warnings", [])
        assert any("could not be summed up" in warning for warning in warnings)
        assert len(all_messages(client, conversation)) == 30
    last = str(requests_of(model, host)[-1]["messages"][0])
    assert "are left out here" in last
    assert last.count("are left out here") == 1
    assert "Messages 1 to " in last


def test_old_results_of_tools_are_cut_first_and_all_at_once(make_host: MakeHost, model: ModelProcess) -> None:
    host = long_host(make_host, "results").start()
    memory = Path(host.environment["MEMORY_DIR"])
    memory.mkdir(exist_ok=True, parents=True)
    (memory / "big.txt").write_text("HEAD" + "x" * 9000 + "\n" + "y" * 100 + "TAIL")
    steps = [{"tools": [{"name": "read_file", "input": {"path": "big.txt"}}]}, {"text": "read"}]
    with host.client() as client:
        conversation = talk(client, [directive(f"read {number}", steps=steps) for number in range(6)])
        kinds = client.get("/metrics").text
        assert 'picoclaw_compactions_total{kind="cut"}' in kinds
        assert not any(is_summary(request) for request in requests_of(model, host))
        assert len(all_messages(client, conversation)) == 12
    last = str(requests_of(model, host)[-1]["messages"])
    assert "characters were left out to save room" in last
    assert last.count("HEAD") == 6


def test_one_message_larger_than_the_window_ends_with_a_sentence_and_the_next_one_works(
    make_host: MakeHost, model: ModelProcess
) -> None:
    host = long_host(make_host, "giant").start()
    with host.client() as client:
        conversation = talk(client, ["remember FACT-7"])
        told = say(client, conversation, "GIANT " + FILLER * 2000)
        assert (told["status"], told["code"]) == ("error", "prompt_too_long")
        assert "too long" in told["error"]
        after = say(client, conversation, "and now?")
        assert after["status"] == "success", after
        assert say(client, conversation, "again?")["status"] == "success"
        assert any("GIANT" in each["content"] for each in all_messages(client, conversation))
    last = str(requests_of(model, host)[-1]["messages"])
    assert "GIANT" not in last
    assert "FACT-7" in last


def test_a_run_of_many_steps_is_compacted_in_its_middle_and_no_result_loses_its_call(
    make_host: MakeHost, model: ModelProcess
) -> None:
    host = long_host(make_host, "steps").start()
    memory = Path(host.environment["MEMORY_DIR"])
    memory.mkdir(exist_ok=True, parents=True)
    (memory / "part.txt").write_text("FACT-part " + FILLER * 15)
    calls = [{"name": "read_file", "input": {"path": "part.txt"}}] * 2
    model.script(*({"tools": calls, "text": FILLER * 10} for _ in range(20)), {"text": "all read"})
    with host.client() as client:
        told = say(client, None, "read it twenty times")
        assert (told["status"], told["result"][-8:]) == ("success", "all read"), told
        assert client.get(f"/chat/{told['conversation_id']}").json()["compactions"] >= 1
    # The fake refuses a request whose tool uses and results don't match, so it has seen none.
    assert any(is_summary(request) for request in requests_of(model, host))


def test_the_api_s_refusal_compacts_and_tries_again(make_host: MakeHost, model: ModelProcess) -> None:
    # The host believes in a window that is four times as large as it is.
    host = make_host("wrong", {"CLAUDE_MODEL": f"fake-wrong-window-{WINDOW}"})
    configure(host, agents={"defaults": {"max_tokens": 1000}}, history={"window": 4 * WINDOW}).start()
    with host.client() as client:
        conversation = talk(client, [f"turn {number} FACT-{number} {FILLER * 5}" for number in range(60)])
        assert client.get(f"/chat/{conversation}").json()["compactions"] >= 1
    assert "FACT-0" in str(requests_of(model, host)[-1]["messages"])
    assert "prompt is too long" in host.log_text


def test_a_reply_that_reaches_the_window_s_end_is_asked_for_again_with_more_room(
    make_host: MakeHost, model: ModelProcess
) -> None:
    host = long_host(make_host, "exceeded").start()
    with host.client() as client:
        conversation = talk(client, [f"turn {number} FACT-{number} {FILLER * 3}" for number in range(8)])
        model.script(
            {"text": "cut off in the mid", "stop_reason": "model_context_window_exceeded"},
            {"text": "cut off in the middle, not"},
        )
        told = say(client, conversation, "go on")
        assert (told["status"], told["result"]) == ("success", "cut off in the middle, not"), told
        assert client.get(f"/chat/{conversation}").json()["compactions"] == 1
        shown = all_messages(client, conversation)
        assert shown[-1]["content"] == "cut off in the middle, not"


def test_a_reader_of_the_stream_is_told(make_host: MakeHost) -> None:
    host = long_host(make_host, "told").start()
    with host.client() as client:
        conversation = talk(client, ["begin"])
        seen: list[str] = []
        for number in range(14):
            body = {"message": f"turn {number} {FILLER * 20}", "conversation_id": conversation}
            told = list(stream(client, body))
            assert told[-1][2]["status"] == "success"
            seen += [data["kind"] for _, name, data in told if name == "compaction"]
        assert "summary" in seen


def test_two_long_conversations_at_once_keep_their_own_facts(
    make_host: MakeHost, model: ModelProcess
) -> None:
    host = long_host(make_host, "both").start()
    ended: dict[str, str] = {}

    def one(name: str) -> None:
        with host.client() as client:
            first = talk(client, [f"remember FACT-{name}"])
            ended[name] = talk(client, [f"{name} {number} {FILLER * 18}" for number in range(16)], first)

    threads = [threading.Thread(target=one, args=(name,)) for name in ("left", "right")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert set(ended) == {"left", "right"}
    for name, other in (("left", "right"), ("right", "left")):
        sent = str([request for request in requests_of(model, host) if f"{name} 15" in str(request)][-1])
        assert f"FACT-{name}" in sent
        assert f"FACT-{other}" not in sent


def test_a_kill_in_the_middle_of_a_summary_loses_nothing_and_doubles_nothing(
    make_host: MakeHost, model: ModelProcess
) -> None:
    host = long_host(make_host, "killed").start()
    slow = '@@summary {"hang_after_deltas": 0, "times": 1}'
    with host.client() as client:
        conversation = talk(client, ["remember FACT-9"])
        number = 0
        while not any(map(is_summary, requests_of(model, host))):
            thread = threading.Thread(target=send, args=(host, conversation, f"turn {number} {slow}"))
            asked = len(requests_of(model, host))
            thread.start()
            until(lambda: len(requests_of(model, host)) > asked)  # noqa: B023 - called at once
            if any(map(is_summary, requests_of(model, host))):
                host.kill()
            thread.join(60)
            number += 1
    host.environment["CLAUDE_MODEL"] = f"fake-after-window-{WINDOW}"
    host.start()
    with host.client() as client:
        shown = all_messages(client, conversation)
        assert sum(each["role"] == "user" for each in shown) == number + 1
        assert client.get(f"/chat/{conversation}").json()["compactions"] == 0
        assert client.get(f"/chat/{conversation}/runs").json()["runs"][0]["code"] == "retryable"
        after = say(client, conversation, "are you there?")
        assert after["status"] == "success", after
        view = client.get(f"/chat/{conversation}").json()
        assert view["compactions"] == 1
        assert len(archive_of(host, conversation)) == 1
        assert "FACT-9" in str(requests_of(model, host)[-1]["messages"])


def send(host: HostProcess, conversation: str, words: str) -> None:
    body = {"message": f"{words} {FILLER * 20}", "conversation_id": conversation}
    with host.client() as client, contextlib.suppress(httpx2.TransportError):
        client.post("/chat", json=body)


def test_a_deleted_conversation_takes_its_archive_with_it(make_host: MakeHost) -> None:
    host = long_host(make_host, "gone").start()
    with host.client() as client:
        conversation = talk(client, [f"turn {number} {FILLER * 20}" for number in range(14)])
        kept = talk(client, [f"other {number} {FILLER * 20}" for number in range(14)])
        assert archive_of(host, conversation)
        assert client.delete(f"/chat/{conversation}").status_code == 204
        assert not (host.root / "memory" / "conversations" / conversation).exists()
        assert archive_of(host, kept)
    host.kill()
    with long_host(make_host, "gone", archive=False).start().client() as client:
        assert client.delete(f"/chat/{kept}").status_code == 204
        assert archive_of(host, kept) == []


def test_without_an_archive_nothing_is_written(make_host: MakeHost) -> None:
    host = long_host(make_host, "none", archive=False).start()
    with host.client() as client:
        conversation = talk(client, [f"turn {number} {FILLER * 20}" for number in range(14)])
        assert client.get(f"/chat/{conversation}").json()["compactions"] >= 1
        assert not (host.root / "memory" / "conversations").exists()


def test_an_archive_that_cannot_be_written_is_a_warning_and_caught_up_later(make_host: MakeHost) -> None:
    host = long_host(make_host, "late").start()
    blocked = host.root / "memory" / "conversations"
    blocked.write_text("a file where the folder should be")
    with host.client() as client:
        conversation = talk(client, ["begin"])
        warnings: list[str] = []
        while not warnings:
            told = say(client, conversation, FILLER * 20)
            assert told["status"] == "success"
            warnings += told.get("warnings", [])
        assert "archive" in warnings[0]
        blocked.unlink()
        say(client, conversation, "hello again")
        count = client.get(f"/chat/{conversation}").json()["compactions"]
        assert len(archive_of(host, conversation)) == count >= 1


def test_an_archive_that_a_killed_host_left_behind_is_caught_up(
    make_host: MakeHost,
) -> None:
    host = long_host(make_host, "behind").start()
    blocked = host.root / "memory" / "conversations"
    blocked.write_text("a file where the folder should be")
    with host.client() as client:
        conversation = talk(client, [f"turn {number} {FILLER * 20}" for number in range(14)])
    host.kill()
    blocked.unlink()
    host.start()
    with host.client() as client:
        say(client, conversation, "hello again")
        count = client.get(f"/chat/{conversation}").json()["compactions"]
    files = archive_of(host, conversation)
    assert len(files) == count >= 1
    assert "turn 0 " in files[0].read_text()


def test_a_summary_counts_into_usage_and_waits_for_the_budget(make_host: MakeHost) -> None:
    host = long_host(make_host, "paid")
    configure(
        host,
        agents={"defaults": {"max_tokens": 1000}},
        history={"window": WINDOW},
        budgets={"day": {"tokens": 10_000_000}},
    ).start()
    with host.client() as client:
        used = 0
        conversation = None
        for number in range(14):
            told = say(client, conversation, f"turn {number} {FILLER * 20}")
            conversation = told["conversation_id"]
            used += sum(told["usage"].values())
        assert client.get(f"/chat/{conversation}").json()["compactions"] >= 1
        (day,) = client.get("/usage").json()["usage"]
        assert day["tokens"] == used
        assert day["unsettled_tokens"] == 0


def test_secrets_reach_neither_summary_nor_archive(make_host: MakeHost, model: ModelProcess) -> None:
    host = long_host(make_host, "secret").start()
    leak = '@@summary {"text": "the key is sk-test-canary, FACT-s"}'
    with host.client() as client:
        conversation = talk(
            client, [f"turn {number} sk-test-canary {leak} {FILLER * 20}" for number in range(14)]
        )
        assert client.get(f"/chat/{conversation}").json()["compactions"] >= 1
    assert "sk-test-canary" not in "".join(file.read_text() for file in archive_of(host, conversation))
    assert "sk-test-canary" not in str(requests_of(model, host)[-1]["messages"][0])
    assert "FACT-s" in str(requests_of(model, host)[-1]["messages"][0])


def test_thinking_that_no_longer_fits_what_stands_before_it_is_left_out(
    make_host: MakeHost, model: ModelProcess
) -> None:
    host = make_host("bound", {"CLAUDE_MODEL": f"claude-sonnet-5-5-bound-window-{2 * WINDOW}"})
    defaults = {"max_tokens": 1000, "thinking": True, "max_thinking_tokens": 1024}
    configure(host, agents={"defaults": defaults}, history={"window": 2 * WINDOW, "compact_at": 0.7}).start()
    persona = Path(host.environment["MEMORY_DIR"], "CLAUDE.md")
    steps = [
        {"thinking": "let me look", "tools": [{"name": "list_dir", "input": {}}]},
        {"thinking": "so that is it", "text": "seen"},
    ]
    message = directive(FILLER * 40, steps=steps)
    with host.client() as client:
        conversation = talk(client, [message] * 4)
        assert "let me look" in str(requests_of(model, host)[-1]["messages"])
        persona.write_text("Be brief.")
        talk(client, [message], conversation)
        assert 'picoclaw_compactions_total{kind="cut"} 1.0' in client.get("/metrics").text
        asked = len(requests_of(model, host))
        talk(client, [message], conversation)
        assert len(requests_of(model, host)) == asked + 2, "what was left out stays out"
        talk(client, [message] * 16, conversation)
        assert client.get(f"/chat/{conversation}").json()["compactions"] >= 2
    assert requests_of(model, host)[-1]["thinking"] == {"type": "adaptive", "display": "summarized"}
    assert str(requests_of(model, host)[-1]["messages"]).count("so that is it") >= 1


def test_a_subagent_that_reads_more_than_the_window_has_its_older_results_cut(
    make_host: MakeHost, model: ModelProcess
) -> None:
    host = long_host(make_host, "child").start()
    Path(host.environment["MEMORY_DIR"], "part.txt").write_text(FILLER * 60)
    read = {"tools": [{"name": "read_file", "input": {"path": "part.txt"}}]}
    task = directive("read it all", steps=[*[read] * 12, {"text": "FACT-child"}])
    steps = [{"tools": [{"name": "spawn", "input": {"task": task}}]}, {"text": "$results"}]
    with host.client() as client:
        told = say(client, None, directive("hand it on", steps=steps))
        assert told["status"] == "success", told
        assert "FACT-child" in told["result"]
    assert any("characters were left out" in str(request) for request in requests_of(model, host))

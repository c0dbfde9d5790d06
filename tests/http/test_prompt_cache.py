"""What the prompt cache has of a conversation, by the cache's own rule: nearly all of it, turn after turn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx2
import pytest

from benchmarks.cache import hit_ratio
from tests.http.conftest import MakeHost, configure
from tests.running import directive

TURNS = 30
WORDS = "We talked about the garden, the fence and the apple trees, and what they will need in spring. "


def converse(client: httpx2.Client, messages: list[str]) -> list[dict[str, Any]]:
    answers: list[dict[str, Any]] = []
    for message in messages:
        body = {"message": message}
        if answers:
            body["conversation_id"] = answers[0]["conversation_id"]
        answers.append(client.post("/chat", json=body).json())
        assert answers[-1]["status"] == "success", answers[-1]
    return answers


def test_in_thirty_turns_nine_tenths_of_the_input_come_from_the_cache(client: httpx2.Client) -> None:
    answers = converse(client, [f"turn {number}: {WORDS * 2}" for number in range(TURNS)])
    assert hit_ratio(answers) >= 0.9


def test_so_do_turns_that_use_tools_many_at_once(make_host: MakeHost) -> None:
    host = make_host().start()
    memory = Path(host.environment["MEMORY_DIR"])
    (memory / "garden.txt").write_text(WORDS * 3)
    # More blocks in one step than the cache looks back over.
    many = [{"name": "read_file", "input": {"path": "garden.txt"}}] * 12
    steps = [[{"tools": many if number % 5 == 0 else many[:1]}, {"text": WORDS}] for number in range(TURNS)]
    with host.client() as client:
        messages = [directive(f"turn {number}", steps=each) for number, each in enumerate(steps)]
        answers = converse(client, messages)
    assert hit_ratio(answers) >= 0.9


def test_what_was_cached_before_a_restart_of_the_host_still_is(make_host: MakeHost) -> None:
    host = make_host().start()
    with host.client() as client:
        before = converse(client, [f"turn {number}: {WORDS * 2}" for number in range(5)])
    host.stop()
    host.start()
    with host.client() as client:
        body = {"message": "and now?", "conversation_id": before[0]["conversation_id"]}
        answer = client.post("/chat", json=body).json()
    assert hit_ratio([answer]) >= 0.9


@pytest.mark.parametrize("compact_at", [0.6])
def test_compaction_costs_the_cache_only_now_and_then(make_host: MakeHost, compact_at: float) -> None:
    host = make_host(settings={"CLAUDE_MODEL": "fake-cached-window-20000"})
    configure(
        host,
        agents={"defaults": {"max_tokens": 1000}},
        history={"window": 20_000, "compact_at": compact_at},
    ).start()
    with host.client() as client:
        answers = converse(client, [f"turn {number}: {WORDS * 4}" for number in range(90)])
        view = client.get(f"/chat/{answers[0]['conversation_id']}").json()
    assert view["compactions"] >= 2
    assert hit_ratio(answers) >= 0.8

"""What the model is sent besides the messages: persona, override, and a prefix that stays the same."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from tests.http.conftest import MakeHost
from tests.running import ModelProcess, directive


def last_request(model: ModelProcess, words: str) -> dict[str, Any]:
    found = [request["body"] for request in model.requests() if words in str(request["body"])]
    body: dict[str, Any] = found[-1]
    return body


def test_the_organisation_s_persona_comes_before_the_user_s(
    make_host: MakeHost, model: ModelProcess, tmp_path: Path
) -> None:
    org = tmp_path / "org"
    org.mkdir()
    (org / "CLAUDE.md").write_text("ORG RULES")
    host = make_host(settings={"ORG_DIR": str(org), "ASSISTANT_NAME": "Ada"}).start()
    persona = Path(host.environment["MEMORY_DIR"]) / "CLAUDE.md"
    persona.write_text("USER WISHES")
    with host.client() as client:
        client.post("/chat", json={"message": "persona-one"})
        system = [block["text"] for block in last_request(model, "persona-one")["system"]]
        persona.write_text("OTHER WISHES")
        client.post("/chat", json={"message": "persona-two"})
        after = [block["text"] for block in last_request(model, "persona-two")["system"]]
    assert system[0].startswith("You are Ada")
    assert "ORG RULES" in system[1]
    assert "USER WISHES" in system[2]
    assert system[:2] == after[:2]
    assert "OTHER WISHES" in after[2]


def test_an_organisation_inside_the_workspace_stops_the_start(make_host: MakeHost, tmp_path: Path) -> None:
    host = make_host(settings={"ORG_DIR": str(tmp_path / "own" / "memory" / "org")})
    host.start(wait=False)
    assert host.process is not None
    assert host.process.wait(20) == 1
    assert "ORG_DIR: must not be inside the workspace" in host.log_text


def test_an_override_takes_the_place_of_the_built_in_prompt(make_host: MakeHost, model: ModelProcess) -> None:
    host = make_host(settings={"SYSTEM_PROMPT_OVERRIDE": "Be a pirate."}).start()
    with host.client() as client:
        client.post("/chat", json={"message": "override-it"})
    assert [block["text"] for block in last_request(model, "override-it")["system"]] == ["Be a pirate."]


def test_a_long_persona_file_is_cut_with_a_note(make_host: MakeHost, model: ModelProcess) -> None:
    host = make_host().start()
    (Path(host.environment["MEMORY_DIR"]) / "CLAUDE.md").write_text("é" * 20_000)
    with host.client() as client:
        client.post("/chat", json={"message": "long-persona"})
    text = last_request(model, "long-persona")["system"][-1]["text"]
    assert text.endswith("[cut: the file is longer than 32768 bytes]")
    assert len(text.encode()) < 33_500


def test_what_was_sent_once_is_the_beginning_of_what_is_sent_next(
    make_host: MakeHost, model: ModelProcess
) -> None:
    host = make_host().start()
    steps = [{"tools": [{"name": "list_dir", "input": {}}]}, {"text": "listed"}]
    with host.client() as client:
        first = client.post("/chat", json={"message": directive("prefix-one", steps=steps)}).json()
        client.post("/chat", json={"message": "prefix-two", "conversation_id": first["conversation_id"]})
    requests = [request["body"] for request in model.requests() if "prefix-one" in str(request["body"])]
    assert len(requests) == 3
    for earlier, later in itertools.pairwise(requests):
        assert earlier["system"] == later["system"]
        assert earlier["tools"] == later["tools"]
        assert without_marks(later["messages"])[: len(earlier["messages"])] == without_marks(
            earlier["messages"]
        )
        assert "cache_control" in earlier["system"][-1]
        assert "cache_control" in earlier["messages"][-1]["content"][-1]


def without_marks(messages: list[dict[str, Any]]) -> list[Any]:
    return [(message["role"], [unmarked(block) for block in message["content"]]) for message in messages]


def unmarked(block: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in block.items() if name != "cache_control"}

"""``picoclaw approvals`` against a real host."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.running import picoclaw
from tests.running import TOKEN, HostProcess, directive, new_host, running_model, until

GATED = '[{"tool": "append_file", "do": "ask"}]'


@pytest.fixture(scope="module")
def gated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    root = tmp_path_factory.mktemp("gated")
    with running_model() as model:
        host = new_host(root, model.url, {"PICOCLAW_PERMISSIONS": GATED}).start()
        yield host
        host.stop()


def asked(host: HostProcess, name: str, **arguments: Any) -> tuple[str, str]:
    """Have the agent ask; return the request and its conversation."""
    steps = [{"tools": [{"name": name, "input": arguments}]}, {"text": "done: $results"}]
    with host.client() as client:
        told = client.post("/chat", json={"message": directive(steps=steps)}).json()
    return str(told["requests"][0]["id"]), str(told["conversation_id"])


def say(host: HostProcess, home: Path, *words: str) -> str:
    ended = picoclaw(home, "approvals", *words, "--url", host.url, API_TOKEN=TOKEN)
    assert ended.returncode == 0, ended.stderr
    return str(ended.stdout)


def heard(host: HostProcess, conversation: str) -> str:
    """Wait for the answer of the run that went on."""
    with host.client() as client:
        path = f"/chat/{conversation}/messages"
        until(lambda: client.get(path).json()["messages"][-1]["role"] == "assistant")
        return str(client.get(path).json()["messages"][-1]["content"])


def test_what_waits_is_listed_allowed_denied_and_answered(gated: HostProcess, tmp_path: Path) -> None:
    allowed, one = asked(gated, "append_file", path="a.txt", content="x")
    denied, two = asked(gated, "append_file", path="b.txt", content="x")
    question, three = asked(gated, "ask_person", question="Which city?")
    listed = json.loads(say(gated, tmp_path, "list", "--json"))
    assert [each["id"] for each in listed] == [allowed, denied, question]
    assert "allowed" in say(gated, tmp_path, "allow", allowed)
    assert "denied" in say(gated, tmp_path, "deny", denied, "--message", "not now")
    assert "answered" in say(gated, tmp_path, "answer", question, "Rome")
    assert "done" in heard(gated, one)
    assert "not now" in heard(gated, two)
    assert "Rome" in heard(gated, three)
    files = Path(gated.environment["MEMORY_DIR"])
    assert ((files / "a.txt").read_text(), (files / "b.txt").exists()) == ("x", False)
    assert "Nothing waits." in say(gated, tmp_path, "list")


def test_an_unknown_request_is_said(gated: HostProcess, tmp_path: Path) -> None:
    ended = picoclaw(tmp_path, "approvals", "allow", "appr-x", "--url", gated.url, API_TOKEN=TOKEN)
    assert (ended.returncode, "approval not found" in ended.stderr) == (1, True)

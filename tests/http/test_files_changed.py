"""What a run changed in its workspace is in its answer, its end and its row."""

from __future__ import annotations

import hashlib
from typing import Any

import httpx2

from tests.running import directive, stream


def tool(name: str, **given: Any) -> dict[str, Any]:
    return {"tools": [{"name": name, "input": given}]}


def test_an_answer_and_done_and_the_run_list_what_was_changed(client: httpx2.Client) -> None:
    steps = [
        tool("write_file", path="changed/report.md", content="hello"),
        tool("exec", command="echo 1 > changed/data.csv"),
        tool("write_file", path="~changed.txt", content="hello", overwrite=True),
        {"text": "done"},
    ]
    body = {"message": directive("work", steps=steps)}
    done = next(data for _, event, data in stream(client, body) if event == "done")
    digest = hashlib.sha256(b"hello").hexdigest()
    mine = {each["path"]: each for each in done["files_changed"] if each["path"].startswith("changed/")}
    report = {"path": "changed/report.md", "size": 5, "sha256": digest, "change": "created", "by": "tool"}
    assert mine["changed/report.md"] == report
    assert (mine["changed/data.csv"]["change"], mine["changed/data.csv"]["by"]) == ("created", "seen")
    assert [each["by"] for each in done["files_changed"] if each["path"] == "~changed.txt"] == ["tool"]
    kept = client.get(f"/runs/{done['run_id']}").json()["answer"]
    assert kept["files_changed"] == done["files_changed"]


def test_a_plain_answer_changed_nothing(client: httpx2.Client) -> None:
    assert client.post("/chat", json={"message": "hi"}).json()["files_changed"] == []


def test_a_run_that_timed_out_or_was_cancelled_tells_what_it_had_changed(client: httpx2.Client) -> None:
    steps = [tool("write_file", path="late/x.txt", content="x", overwrite=True), {"hang": True}]
    body = {"message": directive("work", steps=steps), "max_execution_ms": 3000}
    late = client.post("/chat", json=body).json()
    assert late["status"] == "timeout"
    assert [each["path"] for each in late["files_changed"]] == ["late/x.txt"]

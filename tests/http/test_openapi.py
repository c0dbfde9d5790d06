"""The OpenAPI document and the answers it promises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.json_schema import validator
from tests.running import directive

DOCS = Path(__file__).parent.parent.parent / "docs" / "http.md"


@pytest.fixture(scope="module")
def calls() -> list[tuple[str, str, str, dict[str, Any] | None]]:
    """Requests in an order that makes what the later ones need; {conversation} and {task} are filled in."""
    task = {"prompt": "p", "schedule_type": "once", "schedule_value": "2020-01-01", "run_if_past": True}
    return [
        ("GET", "/health", "/health", None),
        ("GET", "/ready", "/ready", None),
        ("POST", "/chat", "/chat", {"message": "hi"}),
        ("POST", "/chat", "/chat", {"message": directive(status=400)}),
        ("POST", "/chat", "/chat", {"message": ""}),
        ("POST", "/chat", "/chat", {"message": "a", "conversation_id": "conv-none"}),
        ("GET", "/chat", "/chat", None),
        ("GET", "/chat", "/chat?limit=0", None),
        ("GET", "/chat/{id}", "/chat/{conversation}", None),
        ("PATCH", "/chat/{id}", "/chat/{conversation}", {"title": "A name"}),
        ("PATCH", "/chat/{id}", "/chat/conv-none", {"title": "A name"}),
        ("GET", "/chat", "/chat?search=name", None),
        ("POST", "/chat", "/chat", {"message": "a", "replaces": "msg-none"}),
        ("GET", "/chat/{id}/messages", "/chat/{conversation}/messages", None),
        ("GET", "/chat/{id}/runs", "/chat/{conversation}/runs", None),
        ("GET", "/chat/{id}/runs/{run_id}", "/chat/{conversation}/runs/{run}", None),
        ("POST", "/chat/{id}/cancel", "/chat/{conversation}/cancel", None),
        ("POST", "/chat/{id}/resume", "/chat/{conversation}/resume", {"allow_tokens": 1}),
        ("GET", "/admin/skills", "/admin/skills", None),
        ("POST", "/admin/reload-skills", "/admin/reload-skills", None),
        ("GET", "/admin/workspace", "/admin/workspace", None),
        ("GET", "/admin/workspace", "/admin/workspace?path=nowhere.txt", None),
        ("PUT", "/admin/memory", "/admin/memory", {"text": "x", "version": "wrong"}),
        ("PUT", "/admin/memory", "/admin/memory", {"text": "x"}),
        ("GET", "/usage", "/usage", None),
        ("GET", "/usage", "/usage?by=conversation", None),
        ("GET", "/usage", "/usage?by=month", None),
        ("POST", "/task", "/task", task),
        ("POST", "/task", "/task", {**task, "schedule_type": "never"}),
        ("GET", "/tasks", "/tasks", None),
        ("GET", "/task/{id}", "/task/{task}", None),
        ("PUT", "/task/{id}", "/task/{task}", {"prompt": "q"}),
        ("POST", "/task/trigger", "/task/trigger", {"task_id": "{task}"}),
        ("POST", "/task/check", "/task/check", {"max": 3}),
        ("POST", "/task/check", "/task/check", None),
        ("GET", "/task/{id}/runs", "/task/{task}/runs", None),
        ("DELETE", "/task/{id}", "/task/{task}", None),
        ("DELETE", "/task/{id}", "/task/{task}", None),
        ("POST", "/tokens", "/tokens", {"conversation_id": "laptop"}),
        ("POST", "/tokens", "/tokens", {"conversation_id": "-laptop"}),
        ("GET", "/tokens", "/tokens", None),
        ("DELETE", "/tokens/{id}", "/tokens/token-none", None),
        ("DELETE", "/chat/{id}", "/chat/{conversation}", None),
    ]


def test_every_answer_is_as_the_document_says(
    client: httpx2.Client, calls: list[tuple[str, str, str, dict[str, Any] | None]]
) -> None:
    document = client.get("/openapi.json").json()
    names: dict[str, str] = {}
    for method, path, url, body in calls:
        for name, value in names.items():
            url = url.replace("{" + name + "}", value)
            body = {key: value if item == "{" + name + "}" else item for key, item in (body or {}).items()}
        answer = client.request(method, url, json=body or None)
        promised = document["paths"][path][method.lower()]["responses"].get(str(answer.status_code))
        assert promised is not None, (method, url, answer.status_code, answer.text)
        if answer.content:
            schema = promised["content"]["application/json"]["schema"]
            answers = validator({**schema, "components": document["components"]})
            assert [error.message for error in answers.iter_errors(answer.json())] == [], (method, url)
        if answer.status_code in (200, 201) and path in ("/chat", "/task") and method == "POST":
            made = answer.json()
            names.update(
                {"conversation": made["conversation_id"], "run": made["run_id"]}
                if path == "/chat"
                else {"task": made["id"]}
            )


def test_every_route_is_in_the_document_and_in_the_docs(client: httpx2.Client) -> None:
    document = client.get("/openapi.json").json()
    text = DOCS.read_text()
    for path, operations in document["paths"].items():
        for method in operations:
            assert f"`{method.upper()} {path}`" in text, f"{method.upper()} {path} is not in docs/http.md"
        allowed = client.request("TRACE", path.replace("{id}", "x").replace("{run_id}", "y"))
        assert allowed.status_code == 405, path


def test_the_document_is_valid_openapi(client: httpx2.Client) -> None:
    document = client.get("/openapi.json").json()
    assert document["openapi"] == "3.1.0"
    ids = [operation["operationId"] for path in document["paths"].values() for operation in path.values()]
    assert len(ids) == len(set(ids))
    for schema in document["components"]["schemas"].values():
        validator({**schema, "components": document["components"]})

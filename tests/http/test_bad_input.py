"""Bad input: 400 with the field's name, and nothing written."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.examples import examples
from tests.running import HostProcess

TASK = {"prompt": "p", "schedule_type": "interval", "schedule_value": "60000"}

WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("/chat", {}, "message"),
    ("/chat", {"message": None}, "message"),
    ("/chat", {"message": 7}, "message"),
    ("/chat", {"message": ""}, "message"),
    ("/chat", {"message": " \n\t"}, "message"),
    ("/chat", {"message": ["a"]}, "message"),
    ("/chat", {"message": "a\x00b"}, "message"),
    ("/chat", {"message": "a", "conversation_id": 7}, "conversation_id"),
    ("/chat", {"message": "a", "conversation_id": "x" * 201}, "conversation_id"),
    ("/chat", {"message": "a", "sender": 1}, "sender"),
    ("/chat", {"message": "a", "sender": ""}, "sender"),
    ("/chat", {"message": "a", "sender": "x" * 201}, "sender"),
    ("/chat", {"message": "a", "sender_name": {}}, "sender_name"),
    ("/chat", {"message": "a", "stream": "true"}, "stream"),
    ("/chat", {"message": "a", "stream": 1}, "stream"),
    ("/chat", {"message": "a", "max_execution_ms": "100"}, "max_execution_ms"),
    ("/chat", {"message": "a", "max_execution_ms": 0}, "max_execution_ms"),
    ("/chat", {"message": "a", "max_execution_ms": -1}, "max_execution_ms"),
    ("/chat", {"message": "a", "max_execution_ms": 1.5}, "max_execution_ms"),
    ("/chat", {"message": "a", "max_execution_ms": True}, "max_execution_ms"),
    ("/chat", {"message": "a", "thinking": "yes"}, "thinking"),
    ("/chat", {"message": "a", "max_thinking_tokens": "many"}, "max_thinking_tokens"),
    ("/chat", {"message": "a", "show_tool_use": 0}, "show_tool_use"),
    ("/chat", {"message": "a", "model": 3}, "model"),
    ("/chat", {"message": "a", "model": ""}, "model"),
    ("/chat", {"message": "a", "mcp_servers": []}, "mcp_servers"),
    ("/chat", {"message": "a", "mcp_servers": {"x": "http://y"}}, "mcp_servers"),
    ("/chat", {"message": "a", "extra": 1}, "extra"),
    ("/chat", {"message": "a", "Message": "b"}, "Message"),
    ("/task", {**TASK, "prompt": None}, "prompt"),
    ("/task", {**TASK, "prompt": " "}, "prompt"),
    ("/task", {**TASK, "schedule_type": "daily"}, "schedule_type"),
    ("/task", {**TASK, "schedule_value": 60000}, "schedule_value"),
    ("/task", {**TASK, "schedule_value": "60000abc"}, "schedule_value"),
    ("/task", {**TASK, "timezone": "Mars/Base"}, "timezone"),
    ("/task", {**TASK, "context_mode": "both"}, "context_mode"),
    ("/task", {**TASK, "context_mode": "group"}, "conversation_id"),
    ("/task", {**TASK, "catch_up": "some"}, "catch_up"),
    ("/task", {**TASK, "id": 7}, "id"),
    ("/task", {**TASK, "id": "a/b"}, "id"),
    ("/task", {**TASK, "colour": "red"}, "colour"),
    ("/chat/main/cancel", {"run_id": "run-x"}, "run_id"),
    ("/webhooks/release", {"id": "hook-x"}, "id"),
    ("/admin/reload-skills", {"path": "x"}, "path"),
    ("/task/trigger", {}, "task_id"),
    ("/task/trigger", {"task_id": 7}, "task_id"),
    ("/task/check", {"max": 0}, "max"),
    ("/task/check", {"max": "3"}, "max"),
    ("/task/check", {"max": 101}, "max"),
]


@pytest.mark.parametrize(("path", "body", "field"), WRONG)
def test_a_wrong_field_is_named(client: httpx2.Client, path: str, body: dict[str, Any], field: str) -> None:
    before = client.get("/health").json()["database"]
    answer = client.post(path, json=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"].startswith(field)
    assert answer.json()["code"] == "invalid_request"
    assert client.get("/health").json()["database"] == before


def test_what_takes_no_body_takes_one_that_says_nothing(client: httpx2.Client) -> None:
    assert client.post("/admin/reload-skills", json={}).status_code == 200
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert client.post("/admin/reload-skills", content=b"", headers=form).status_code == 200


@pytest.mark.parametrize(
    "raw",
    [
        b"{",
        b"[1]",
        b'"text"',
        b"null",
        b"\xff\xfe",
        b'{"message": "\xc3"}',
        b'{"message": "\\ud800"}',
        b"NaN",
    ],
)
def test_what_is_not_a_json_object_is_refused_as_the_body(client: httpx2.Client, raw: bytes) -> None:
    answer = client.post("/chat", content=raw, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("body")


def test_a_query_that_has_to_be_one_of_some_texts_is_refused_with_those_there_are(
    client: httpx2.Client,
) -> None:
    document = client.get("/openapi.json").json()
    lists = {path: methods["get"] for path, methods in document["paths"].items() if "get" in methods}
    asked = [
        (path, each["name"], each["schema"]["enum"])
        for path, get in lists.items()
        for each in get.get("parameters", ())
        if each["in"] == "query" and "enum" in each["schema"] and "{" not in path
    ]
    assert {name for _, name, _ in asked} == {"status", "kind", "action", "by"}
    for path, name, choices in asked:
        refused = client.get(path, params={name: "zzz"})
        assert refused.status_code == 400, path
        assert refused.json()["error"].startswith(f"{name}: must be one of")
        assert [each for each in choices if each not in refused.json()["error"]] == []


@pytest.mark.parametrize("nesting", [b"[" * 100_000, b'{"a":' * 50_000])
def test_nesting_without_end_is_refused(client: httpx2.Client, nesting: bytes) -> None:
    answer = client.post("/chat", content=nesting, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/chat?limit=0", "limit"),
        ("/chat?limit=1001", "limit"),
        ("/chat?limit=ten", "limit"),
        ("/chat?limit=%D9%A3", "limit"),
        ("/chat?cursor=zzz", "cursor"),
        ("/chat?cursor=5b5d", "cursor"),
        ("/chat?include_temporary=maybe", "include_temporary"),
        ("/chat/main/messages?cursor=5b2261225d", "cursor"),
        ("/tasks?status=dead", "status"),
    ],
)
def test_a_wrong_query_parameter_is_named(client: httpx2.Client, path: str, field: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith(field)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.sampled_from(
    ["message", "conversation_id", "sender", "stream", "max_execution_ms", "thinking", "model", "mcp_servers"]
)


def test_no_parameter_of_any_list_takes_the_character_that_no_database_keeps(client: httpx2.Client) -> None:
    lists = [
        (path, each["name"])
        for path, operations in client.get("/openapi.json").json()["paths"].items()
        for each in operations.get("get", {}).get("parameters", ())
        if each["in"] == "query" and "{" not in path
    ]
    assert len(lists) > 20
    for path, name in lists:
        answer = client.get(f"{path}?{name}=a%00b")
        assert answer.status_code == 400, (path, name)
        assert name in answer.text


def test_a_misspelt_parameter_and_one_given_twice_are_refused(client: httpx2.Client) -> None:
    # A filter that is taken in silence would show something else than was meant.
    lists = [
        (path, [each["name"] for each in operations["get"].get("parameters", ()) if each["in"] == "query"])
        for path, operations in client.get("/openapi.json").json()["paths"].items()
        if "get" in operations and "{" not in path and path not in ("/health", "/ready", "/v1/models")
    ]
    assert len(lists) > 12
    for path, names in lists:
        answer = client.get(f"{path}?stauts=failed")
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request"), path
        assert answer.json()["error"] == "stauts: is not a known parameter"
        for name in names:
            answer = client.get(f"{path}?{name}=1&{name}=2")
            assert (answer.status_code, answer.json()["error"]) == (400, f"{name}: may be given once"), path


def test_what_clients_of_other_doors_send_beside_is_no_fault(client: httpx2.Client) -> None:
    assert client.get("/v1/models?api-version=2024-10-21").status_code == 200
    assert client.get("/health?from=probe").status_code == 200


@settings(max_examples=examples(150), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.dictionaries(FIELDS | st.text(max_size=12), JSON, max_size=5))
def test_no_body_ever_brings_an_internal_error(host: HostProcess, body: dict[str, Any]) -> None:
    # A conversation that doesn't exist: a body that happens to be right runs no model.
    body = {**body, "conversation_id": body.get("conversation_id") or "conv-none"}
    with host.client() as client:
        answer = client.post("/chat", json=body)
    assert answer.status_code in (400, 404), answer.text
    if answer.status_code == 400:
        named = answer.json()["error"].partition(":")[0].split(".")[0]
        assert named in {"body", *body, "message"}


@settings(max_examples=examples(100), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=st.binary(max_size=200))
def test_rubbish_is_never_an_internal_error(host: HostProcess, raw: bytes) -> None:
    with host.client() as client:
        answer = client.post("/task", content=raw, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400

"""Every place of the API that takes an id, with another principal's: as with one that nobody has.

The places are found in the routes themselves; a new one without a row in the tables here fails.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Final
from uuid import uuid4

import httpx2
import pytest

import host.app
from host.http.routing import Api, Operation
from shared.ask_contract import TASKS
from tests.http.two_principals import (
    APPEND,
    HOOK,
    SETTINGS,
    TASK,
    Somebody,
    asking,
    leave_waiting,
    settle,
    somebody,
)
from tests.mcp.over_http import RawHttp, envelope, request
from tests.running import HostProcess, ModelProcess, new_host, until

SECRET: Final = "apples"
IN_PATH: Final = {
    "/chat/{id}": "conversation",
    "/chat/{id}/runs/{run_id}": "run",
    "/chat/{id}/files/{path:path}": "file",
    "/approvals/{id}": "approval",
    "/runs/{run_id}": "run",
    "/webhooks/{id}": "webhook",
    "/webhooks/{id}/deliveries/{delivery_id}": "delivery",
    "/v1/responses/{id}": "response",
    "/task/{id}": "task",
    "/me/tokens/{token_id}": "token",
    # What follows is the operator's: refused whatever the id.
    "/tokens/{id}": "token",
    "/principals/{id}": "principal",
    "/principals/{id}/tokens/{token_id}": "token",
    "/mcp/servers/{name}": "conversation",
}
"""Whose id a path's last place has."""

NO_IDS: Final = {"/v1/models/{id:path}", "/console/{name:path}", "/channels/{name}/webhook"}
"""Paths whose places are the same for everybody."""

FORM: Final = {
    "content": b'--b\r\nContent-Disposition: form-data; name="f"; filename="x"\r\n\r\nx\r\n--b--\r\n'
}
FORM_TYPE: Final = {"Content-Type": "multipart/form-data; boundary=b"}
BODIES: Final[dict[str, Any]] = {
    "POST /approvals/{id}": {"decision": "deny"},
    "PATCH /chat/{id}": {"title": "mine"},
    "POST /chat/{id}/resume": {},
    "POST /chat/{id}/files/{path:path}": {"move_to": "y"},
    "PUT /task/{id}": {"prompt": "mine"},
    "PATCH /webhooks/{id}": {"content": False},
    "POST /webhooks/{id}/secret": {},
    "POST /principals/{id}/tokens": {},
    "PATCH /principals/{id}": {"name": "mine"},
    "POST /mcp/servers/{name}/sign-in": {"redirect_uri": "http://127.0.0.1:1/callback"},
    "POST /mcp/servers/{name}/sign-in/callback": {"callback": "http://127.0.0.1:1/callback?code=a&state=b"},
}
"""What is sent to those whose path names something."""

SAID: Final = {"message": "hello"}
ASKED: Final = {"model": "picoclaw", "messages": [{"role": "user", "content": "hello"}]}
RESPOND: Final = {"model": "picoclaw", "input": "hello"}
CALLED: Final = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "{call}", "type": "function", "function": {"name": "weather", "arguments": "{}"}}],
}
RESULT: Final = {"role": "tool", "tool_call_id": "{call}", "content": "42"}
RETURNED: Final = [
    {"type": "function_call", "call_id": "{call}", "name": "weather", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "{call}", "output": "42"},
]
ELSEWHERE: Final[dict[str, list[Any]]] = {
    "POST /chat": [
        {**SAID, "conversation_id": "{conversation}"},
        {**SAID, "conversation_id": "{conversation}", "background": True},
        {**SAID, "conversation_id": "{conversation}", "stream": True},
        {**SAID, "conversation_id": "{approval_conversation}", "deny_pending": True},
        {**SAID, "conversation_id": "main", "replaces": "{message}"},
        {**SAID, "conversation_id": "{conversation}", "attachments": [{"path": "{file}"}]},
        {**SAID, "attachments": [{"path": "{file}"}]},
    ],
    "POST /task": [{**TASK, "conversation_id": "{conversation}"}],
    "POST /task/trigger": [{"task_id": "{task}"}, {"task_id": "{task}", "background": True}],
    "POST /v1/chat/completions": [
        {**ASKED, "messages": [*ASKED["messages"], CALLED, RESULT]},
        {**ASKED, "messages": [RESULT]},
    ],
    "POST /v1/responses": [
        {**RESPOND, "previous_response_id": "{answered}"},
        {**RESPOND, "previous_response_id": "{answered}", "background": True},
        {**RESPOND, "previous_response_id": "{response}", "input": RETURNED[1:]},
        {**RESPOND, "conversation": "{conversation}"},
        {**RESPOND, "conversation": {"id": "{conversation}"}},
        {**RESPOND, "input": RETURNED},
        {**RESPOND, "input": RETURNED[1:]},
        {**RESPOND, "input": [RESULT]},
    ],
    "POST /tokens": [{"conversation_id": "{conversation}"}],
    "POST /principals/{id}/tokens": [{"conversation_id": "{conversation}"}],
}
"""Ids in bodies."""

QUERIES: Final[dict[str, str]] = {
    "conversation_id": "conversation",
    "run_id": "run",
    "root_run_id": "run",
    "task_id": "task",
    "principal_id": "principal",
    "Last-Event-ID": "number",
    "Mcp-Session-Id": "session",
    "X-Conversation-ID": "conversation",
}
"""Ids in queries and headers."""

NAMES: Final = re.compile(r"_id$|-id$|^(conversation|replaces)$", re.IGNORECASE)
UUID: Final = re.compile(r"[0-9a-f]{8}-?(?:[0-9a-f]{4}-?){3}[0-9a-f]{12}")
Call = tuple[str, str, dict[str, str], Any]


def operations() -> list[Operation]:
    assert host.app is not None
    apis = [api for api in Api.__subclasses__() if api.__module__.startswith("host.")]
    return [each for api in apis for each in api.operations() if not each.open]


def address(declared: Operation) -> str:
    """The path with a name in each of its places; raises KeyError for one that no table has."""
    filled = declared.path
    for place in re.finditer(r"\{[^}]*\}", declared.path):
        filled = filled.replace(place[0], "{" + IN_PATH[declared.path[: place.end()]] + "}", 1)
    return filled


def calls_of(declared: Operation) -> Iterator[Call]:
    route = f"{declared.method} {declared.path}"
    if declared.path in NO_IDS:
        return
    path = address(declared)
    body = BODIES[route] if (declared.body is not None and path != declared.path) or route in BODIES else None
    if path != declared.path:
        yield declared.method, path, {}, body
    # A file's name in one's own conversation is a free one.
    if (
        path.count("{") == 2
        and declared.scope is not None
        and (declared.method == "GET" or "file" not in path)
    ):
        head, _, rest = path[1:].partition("/")
        yield declared.method, f"/{head}/{{own_{head}}}/{rest.partition('/')[2]}", {}, body
    for each in ELSEWHERE.get(route, ()):
        yield declared.method, path, {}, each
    for each in declared.parameters:
        if NAMES.search(each.name):
            value = "{" + QUERIES[each.name] + "}"
            if each.place == "query":
                yield declared.method, f"{path}?{each.name}={value}", {}, body
            else:
                said = body or (ASKED if declared.path.startswith("/v1") else request(1, "tools/list", {}))
                yield declared.method, path, {each.name: value}, None if declared.method == "GET" else said


CALLS: Final = [call for declared in operations() for call in calls_of(declared)]


def names_in(schema: Any) -> set[str]:
    """The names of all fields of a body."""
    if isinstance(schema, list):
        return set().union(*map(names_in, schema))
    if not isinstance(schema, dict):
        return set()
    return set(schema.get("properties", ())) | names_in([*schema.values()])


def test_each_field_of_a_body_that_names_something_is_tried() -> None:
    for declared in operations():
        if declared.body is None or declared.scope is None:
            continue
        route = f"{declared.method} {declared.path}"
        wanted = {name for name in names_in(declared.body.model_json_schema()) if NAMES.search(name)}
        tried = json.dumps(ELSEWHERE.get(route, []))
        assert {name for name in wanted if f'"{name}": ' not in tried} == set(), route


@pytest.fixture(scope="module")
def apart(model: ModelProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    process = new_host(tmp_path_factory.mktemp("foreign"), model.url, SETTINGS)
    yield process.start()
    process.kill()


@pytest.fixture(scope="module")
def ann(apart: HostProcess) -> Iterator[Somebody]:
    with somebody(apart, "Ann") as who:
        leave_waiting(settle(who, SECRET), SECRET)
        with RawHttp(apart, who.token["token"]) as client:
            client.hello()
            who.ids["session"] = client.session or ""
        who.ids |= {"principal": who.id, "file": f"{SECRET}.txt", "number": "1"}
        remembered = f"/approvals/{who.ids['remembered']}"
        until(lambda: who.client.get(remembered).json()["next_run_id"])
        until(lambda: "running" not in {each["status"] for each in who.client.get("/runs").json()["runs"]})
        yield who


@pytest.fixture(scope="module")
def bob(apart: HostProcess) -> Iterator[Somebody]:
    with somebody(apart, "Bob") as who:
        who.chat("hello", conversation_id="main")
        who.ids["own_webhooks"] = who.client.post("/webhooks", json=HOOK).json()["id"]
        yield who


def seen(who: Somebody) -> dict[str, Any]:
    """All that somebody sees of what is theirs; tries of deliveries go on meanwhile."""
    ids = who.ids
    paths = ["/chat", "/tasks", "/runs", "/approvals", "/usage", "/webhooks", "/me", "/me/tokens"]
    for conversation in ("main", ids["conversation"], ids["approval_conversation"]):
        paths += [
            f"/chat/{conversation}{more}" for more in ("", "/messages", "/runs", "/files", "/remembered")
        ]
    paths += [f"/approvals/{ids['approval']}", f"/webhooks/{ids['webhook']}", f"/task/{ids['task']}"]
    paths += [f"/v1/responses/{ids[each]}" for each in ("response", "answered")]
    found = {path: without_times(who.client.get(path).json()) for path in paths}
    deliveries = who.client.get(f"/webhooks/{ids['webhook']}/deliveries").json()["deliveries"]
    return {**found, "deliveries": [each["id"] for each in deliveries]}


def without_times(shown: Any) -> Any:
    if isinstance(shown, list):
        return [without_times(each) for each in shown]
    if not isinstance(shown, dict):
        return shown
    volatile = ("last_used_at", "state", "error", "last_error", "last_success_at", "failing_since")
    return {name: without_times(value) for name, value in shown.items() if name not in volatile}


def told(client: httpx2.Client, call: Call, ids: dict[str, str]) -> tuple[int, str, str]:
    filled = json.dumps(call)
    for name, value in ids.items():
        filled = filled.replace("{" + name + "}", value)
    method, path, headers, body = json.loads(filled)
    sent = {} if body is None else {"json": body}
    if (method, call[1].rpartition("/")[2]) == ("POST", "files"):
        sent, headers = dict(FORM), {**headers, **FORM_TYPE}
    answer = client.request(method, path, headers={**headers, "X-Request-ID": "same"}, **sent)
    text = answer.text
    for name, value in ids.items():
        text = text if name == "number" else text.replace(value, "{" + name + "}")
    assert SECRET not in text
    return answer.status_code, answer.headers.get("content-type", ""), text


def unknown(ids: dict[str, str]) -> dict[str, str]:
    """Ids of the same forms that nobody has."""
    new = {
        name: re.sub(r"[0-9a-f]{8}-?[0-9a-f-]{23,27}", lambda _: str(uuid4()), each)
        for name, each in ids.items()
    }
    return {**new, "file": "x.txt", "session": str(uuid4())}


@pytest.mark.parametrize("call", CALLS, ids=[f"{call[0]} {call[1]} {n}" for n, call in enumerate(CALLS)])
def test_another_s_id_is_told_nothing_but_what_an_unknown_one_is(
    ann: Somebody, bob: Somebody, call: Call
) -> None:
    before = seen(ann)
    own = {"own_chat": "main", **bob.ids}
    theirs = told(bob.client, call, {**ann.ids, **own})
    assert theirs == told(bob.client, call, {**unknown(ann.ids), **own})
    assert theirs[0] in (200, 400, 403, 404, 409), theirs
    named = {**ann.ids, "conversation": f"{ann.id}+main", "task": f"{ann.id}+daily"}
    # At OpenAI's door what is no id is a name, and every name is free.
    is_a_name = "X-Conversation-ID" in call[2]
    assert told(bob.client, call, {**named, **own})[0] == (200 if is_a_name else theirs[0])
    assert seen(ann) == before


SAME_KEY: Final[dict[str, Any]] = {
    "POST /chat": SAID,
    "POST /chat/{id}/resume": {},
    "POST /approvals/{id}": {"decision": "deny"},
    "POST /v1/chat/completions": ASKED,
    "POST /v1/responses": RESPOND,
    "POST /me/tokens": {},
    "POST /task": TASK,
    "POST /task/trigger": {"task_id": "daily"},
    "POST /webhooks": HOOK,
}
"""What two say with the same Idempotency-Key."""


@pytest.mark.parametrize(
    "route",
    [
        f"{each.method} {each.path}"
        for each in operations()
        if each.scope and "Idempotency-Key" in {one.name for one in each.parameters}
    ],
)
def test_another_s_idempotency_key_is_a_free_one(apart: HostProcess, route: str) -> None:
    """Each gets an answer of its own, the second time the same, whatever the other did before."""
    answers, gate = [], [{"tool": "append_file", "do": "ask"}]
    for name in ("Cid", "Dan"):
        with somebody(apart, name) as who:
            who.client.post("/task", json={**TASK, "id": "daily"})
            waiting = who.chat(asking(APPEND), conversation_id="main", permissions=gate)
            path = route.partition(" ")[2]
            if path == "/approvals/{id}":
                path = f"/approvals/{waiting['requests'][0]['id']}"
            elif path == "/chat/{id}/resume":
                path = "/chat/main/resume"
                assert who.client.post("/chat/main/cancel").status_code == 202
            body, headers = SAME_KEY[route], {"Idempotency-Key": f"same for {route}"}
            first = who.client.post(path, json=body, headers=headers)
            assert first.is_success, first.text
            again = who.client.post(path, json=body, headers=headers)
            made, seen_again = (set(UUID.findall(each.text)) for each in (first, again))
            assert made
            # Its token's text is told once.
            assert made & seen_again or (again.status_code, again.json()["code"]) == (409, "already_made")
            answers.append((first.status_code, made))
    assert answers[0][0] == answers[1][0]
    assert not answers[0][1] & answers[1][1]


def test_at_mcp_another_s_runs_and_tasks_are_unknown_ones(
    apart: HostProcess, ann: Somebody, bob: Somebody
) -> None:
    before, ids = seen(ann), {**ann.ids, "conversation": ann.ids["approval_conversation"]}
    able = {**envelope(), "io.modelcontextprotocol/clientCapabilities": {"extensions": {TASKS: {}}}}
    answer = {ids["approval"]: {"action": "accept", "content": {"answer": "yes"}}}
    ask = {"name": "ask", "arguments": {"message": "hello"}}
    asked: list[tuple[str, dict[str, Any]]] = [
        *(
            ("tools/call", {"name": name, "arguments": {"run_id": "{run}"}})
            for name in ("get_run", "cancel_run")
        ),
        ("tools/call", {**ask, "arguments": {"message": "hello", "conversation_id": "{conversation}"}}),
        ("tools/call", {**ask, "requestState": "{run}", "inputResponses": answer}),
        ("tasks/get", {"taskId": "{run}"}),
        ("tasks/update", {"taskId": "{run}", "inputResponses": answer}),
        ("tasks/cancel", {"taskId": "{run}"}),
        ("resources/read", {"uri": "picoclaw://task/{task}"}),
    ]
    with RawHttp(apart, bob.token["token"]) as client:
        for method, params in asked:
            told_of = []
            for each in (ids, unknown(ids)):
                said = json.dumps({**params, "_meta": able})
                for name, value in each.items():
                    said = said.replace("{" + name + "}", value)
                filled = json.loads(said)
                named = {"mcp_name": filled["taskId"]} if "taskId" in filled else {}
                text = client.stateless(method, filled, **named).text
                for name, value in each.items():
                    text = text if name == "number" else text.replace(value, "{" + name + "}")
                told_of.append(text)
            assert told_of[0] == told_of[1], method
            assert "rror" in told_of[0], method
    assert seen(ann) == before

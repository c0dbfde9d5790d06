"""Whatever one principal asks with another's ids, over every route and tool: as with unknown ones.

Requests are made from the OpenAPI document and the tools' schemas, each one twice: with an id of the other
one and with one that nobody has: status, headers and bytes are the same but for the id.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import uuid4

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.examples import examples
from tests.http.two_principals import SETTINGS, Somebody, leave_waiting, settle, somebody
from tests.mcp.over_http import HELLO, RawHttp, request
from tests.running import HostProcess, ModelProcess, new_host

PAIRS: Final = min(examples(500), 5000)
SECRET: Final = "apples"
FOREIGN, TEXT = "{foreign}", "{text}"
IDS: Final = re.compile(r"_id$|^(replaces|user|cursor|X-.*Id|X-Conversation-ID|Mcp-Session-Id|name)$")
"""Names of fields and parameters that may hold an id; what is called ``id`` alone, its caller chooses."""
VARIES: Final = {
    r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f-]{22}": "<uuid>",
    r"\d{4}-\d\d-\d\dT[\d:.]+(Z|[+-]\d\d:\d\d)": "<time>",
    # What Bob asked before is in the model's cache.
    r'("(created|created_at|completed_at|duration_ms|cache_\w+|cached_tokens)": ?)\d+': r"\1<number>",
    r'("next_cursor": ?)"\w+"': r"\1<cursor>",
    r"pico_[\w-]+": "<secret>",
    # Content that can't be taken is told by a digest: each request has texts of its own.
    r"\b[0-9a-f]{12}(?= left out:)": "<digest>",
}
numbers = itertools.count()


@dataclass(frozen=True)
class Call:
    """A request with places for an id and for texts of its own."""

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Any = None

    @property
    def has_foreign(self) -> bool:
        return FOREIGN in repr(self)

    def filled(self, foreign: str) -> tuple[Call, dict[str, str]]:
        said = json.dumps([self.path, dict(self.query), dict(self.headers), self.body])
        texts = {f"text{next(numbers)}-": TEXT, foreign: FOREIGN}
        for value, place in texts.items():
            said = said.replace(place, value)
        path, query, headers, body = json.loads(said)
        return Call(self.method, path, query, headers, body), texts


class World:
    """The document, the tools, and two principals, of whom Bob asks and Ann is asked for."""

    def __init__(self, host: HostProcess, ann: Somebody, bob: Somebody) -> None:
        self.ann, self.bob = ann, bob
        self.document = bob.client.get("/openapi.json").json()
        with RawHttp(host, ann.token["token"]) as client:
            client.hello()
            assert client.session is not None
            ann.ids["session"] = client.session
        with RawHttp(host, bob.token["token"]) as client:
            client.hello()
            self.session = client.session or ""
            self.tools = client.say(request(1, "tools/list", {})).json()["result"]["tools"]
        self._others: defaultdict[str, str] = defaultdict(lambda: str(uuid4()))
        self.ids = {**ann.ids, "principal": ann.id, "main": f"{ann.id}+main", "daily": f"{ann.id}+daily"}

    def unknown(self, known: str) -> str:
        """An id that nobody has; always the same for one, so that what Bob keeps under both (``user`` names a
        thread of his) grows alike.
        """
        return re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}", lambda each: self._others[each[0]], known)

    def of_ann(self) -> list[str]:
        """All that Ann sees of what is hers."""
        client, ids = self.ann.client, self.ann.ids
        conversation = f"/chat/{ids['conversation']}"
        paths = ("/chat", "/tasks", "/usage", "/me", "/task/daily", conversation, f"{conversation}/messages")
        more = ("/chat/main/messages", f"{conversation}/runs", f"/task/{ids['task']}/runs")
        return [client.get(path).text for path in (*paths, *more)]

    def say(self, call: Call) -> httpx2.Response:
        sent = {} if call.body is None else {"json": call.body}
        headers = {**call.headers, "X-Request-ID": "same"}
        client = self.bob.client
        return client.request(call.method, call.path, params=dict(call.query), headers=headers, **sent)

    def answered(self, call: Call, foreign: str) -> tuple[int, str, str]:
        filled, said = call.filled(foreign)
        answer = self.say(filled)
        text = answer.text
        for value, place in said.items():
            text = text.replace(value, place)
        assert SECRET not in text
        assert self.ann.id not in text
        for pattern, plain in VARIES.items():
            text = re.sub(pattern, plain, text)
        return answer.status_code, answer.headers.get("content-type", ""), text


@pytest.fixture(scope="module")
def world(model: ModelProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    host = new_host(tmp_path_factory.mktemp("fuzz"), model.url, SETTINGS).start()
    with somebody(host, "Ann") as ann, somebody(host, "Bob") as bob:
        leave_waiting(settle(ann, SECRET), SECRET)
        yield World(host, ann, settle(bob, "bananas"))
    host.kill()


def values(name: str, schema: Mapping[str, Any], document: Mapping[str, Any]) -> st.SearchStrategy[Any]:
    """Values of a schema, roughly: what matters is where ids go."""
    if "$ref" in schema:
        return values(name, document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]], document)
    if choices := schema.get("anyOf") or schema.get("oneOf"):
        return st.one_of([values(name, one, document) for one in choices])
    if "enum" in schema or "const" in schema:
        return st.sampled_from(schema.get("enum") or [schema["const"]])
    kind = schema.get("type")
    if kind == "object" or "properties" in schema:
        required = set(schema.get("required", ()))
        each = {key: values(key, one, document) for key, one in schema.get("properties", {}).items()}
        needed = {key: value for key, value in each.items() if key in required}
        other = {key: value for key, value in each.items() if key not in required}
        return st.fixed_dictionaries(needed, optional=other)
    if kind == "array":
        return st.lists(values(name, schema.get("items", {}), document), min_size=1, max_size=2)
    if kind in ("integer", "number"):
        return st.just(60_000)
    if kind == "boolean":
        return st.booleans()
    if kind == "null":
        return st.none()
    if name == "schedule_value":
        return st.just("3600000")
    return st.sampled_from([FOREIGN, FOREIGN, TEXT]) if IDS.search(name) else st.just(TEXT)


def http_calls(world: World) -> st.SearchStrategy[Call]:
    every = []
    for path, methods in world.document["paths"].items():
        for method, declared in methods.items():
            if path != "/mcp":
                every.append(http_call(world, path, method, declared))
    return st.one_of(every)


@st.composite
def http_call(draw: st.DrawFn, world: World, path: str, method: str, declared: Mapping[str, Any]) -> Call:
    said: dict[str, dict[str, str]] = {"query": {}, "header": {}}
    for each in declared.get("parameters", ()):
        if each["in"] == "path":
            # What is its own, it only reads: the next call is to find it as it was.
            own = ["main", "daily"] if method == "get" else []
            path = path.replace("{" + each["name"] + "}", draw(st.sampled_from([FOREIGN, *own])))
        elif each["name"] not in ("limit", "Idempotency-Key", "search") and draw(st.booleans()):
            value = draw(values(each["name"], each["schema"], world.document))
            said[each["in"]][each["name"]] = str(value)
    content = declared.get("requestBody", {}).get("content", {}).get("application/json")
    body = draw(values("", content["schema"], world.document)) if content else None
    return Call(method.upper(), path, said["query"], said["header"], body)


@st.composite
def mcp_call(draw: st.DrawFn, world: World) -> Call:
    tool = draw(st.sampled_from(world.tools))
    call = {"name": tool["name"], "arguments": draw(values("", tool["inputSchema"], world.document))}
    read = {"uri": draw(st.sampled_from(["picoclaw://tasks", f"picoclaw://{FOREIGN}"]))}
    asked = [("tools/call", call), ("resources/read", read), ("tools/list", {}), ("initialize", HELLO)]
    method, params = draw(st.sampled_from(asked))
    session = draw(st.sampled_from([world.session, FOREIGN]))
    return Call("POST", "/mcp", headers={"Mcp-Session-Id": session}, body=request(1, method, params))


def test_with_another_s_ids_one_is_told_what_unknown_ids_are(world: World) -> None:
    before = world.of_ann()
    told: dict[int, int] = {}

    calls = st.one_of([http_calls(world), mcp_call(world)]).filter(lambda call: call.has_foreign)

    @settings(max_examples=PAIRS, database=None, suppress_health_check=[HealthCheck.filter_too_much])
    @given(calls, st.sampled_from(sorted(world.ids)))
    def ask(call: Call, which: str) -> None:
        known = world.ids[which]
        theirs = world.answered(call, known)
        assert theirs == world.answered(call, world.unknown(known))
        told[theirs[0]] = told.get(theirs[0], 0) + 1

    ask()
    assert world.of_ann() == before
    assert {200, 400, 403, 404} <= set(told)

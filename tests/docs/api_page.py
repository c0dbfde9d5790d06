"""docs/api.md, made of the OpenAPI document and of what a host on the offline model really answers.

``python -m tests.docs.api_page docs/api.md`` writes the page.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import httpx2
import yaml

from tests.running import HostProcess, running_host, until

ROOT: Final = Path(__file__).parents[2]
MEANINGS: Final[dict[str, str]] = yaml.safe_load((ROOT / "docs/site/fields.yml").read_text())
GROUPS: Final = {
    "Health": ("/health", "/ready", "/metrics", "/openapi.json"),
    "Conversations": ("/chat",),
    "Runs": ("/runs",),
    "Requests for a person": ("/approvals",),
    "Webhooks": ("/webhooks",),
    "Tasks": ("/task",),
    "Usage": ("/usage",),
    "Principals and tokens": ("/principals", "/tokens", "/me", "/audit"),
    "Skills, workspace, memory": ("/admin",),
    "OpenAI's API": ("/v1",),
    "MCP": ("/mcp",),
    "Channels": ("/channels",),
    "Control": ("/control",),
}
HEAD: Final = """# Every route

This page is generated: the tables come from the classes that the host checks requests and answers with, the
examples are what a host on the offline model answered. Ids, times, hashes and counts in them are replaced by
fixed ones. [The HTTP API](http.md) has what holds for every request, the events and how a run can end.
`GET /openapi.json` is the same for programs.

Each route that needs a token also answers 400, 401, 403, 408, 429, 500 and 503 where they apply.
[Error codes](errors.md) lists the codes.
"""

Call = tuple[str, str, str, dict[str, Any] | str | None, dict[str, str]]
"""Method, path of the document, address, body (a text is none of JSON), headers. {name} stands for what an
earlier answer told.
"""

SAID: Final = {"message": "what did I say?"}
GATED: Final = {
    "message": "write hello to notes.txt",
    "conversation_id": "{conversation}",
    "permissions": [{"tool": "write_file", "do": "ask"}],
}
ALLOWED: Final = {"decision": "allow", "input_sha256": "{input_sha256}", "remember": "conversation"}
WEBHOOK: Final = {"url": "https://hooks.example.com/picoclaw", "events": ["run.ended", "run.paused"]}
HOOK: Final = "/webhooks/{webhook}"
REPLAY: Final = "/webhooks/{id}/deliveries/{delivery_id}/replay"
TASK: Final = {
    "prompt": "say good morning",
    "schedule_type": "cron",
    "schedule_value": "0 9 * * *",
    "timezone": "Europe/Berlin",
}
INITIALIZE: Final = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "me", "version": "1"},
    },
}
ASKED: Final = {"model": "picoclaw", "messages": [{"role": "user", "content": "what did I say?"}]}
RUN: Final = "/chat/{id}/runs/{run_id}"
TOKENS: Final = "/principals/{id}/tokens"
SIGN_IN: Final = "/mcp/servers/{name}/sign-in"
RETURN: Final = "http://127.0.0.1:7624/callback"
CALLBACK: Final = f"{RETURN}?code=abc&state=xyz"
FILE: Final = "/chat/{id}/files/{path}"
FORM_TYPE: Final = {"Content-Type": "multipart/form-data; boundary=part"}
FORM: Final = """--part
Content-Disposition: form-data; name="file"; filename="ann.txt"

Dear Ann
--part--
"""
CALLS: Final[list[Call]] = [
    ("GET", "/ready", "/ready", None, {}),
    ("POST", "/chat", "/chat", SAID, {"Idempotency-Key": "order-17"}),
    ("GET", "/chat", "/chat?limit=1", None, {}),
    ("GET", "/chat/{id}", "/chat/{conversation}", None, {}),
    ("PATCH", "/chat/{id}", "/chat/{conversation}", {"title": "Trip to Oslo"}, {}),
    ("GET", "/chat/{id}/messages", "/chat/{conversation}/messages?limit=1", None, {}),
    ("GET", "/chat/{id}/runs", "/chat/{conversation}/runs", None, {}),
    ("GET", RUN, "/chat/{conversation}/runs/{run}", None, {}),
    ("GET", f"{RUN}/events", "/chat/{conversation}/runs/{run}/events", None, {"Last-Event-ID": "1"}),
    ("POST", "/chat/{id}/cancel", "/chat/{conversation}/cancel", None, {}),
    ("GET", "/runs", "/runs?status=success&limit=1", None, {}),
    ("GET", "/runs/{run_id}", "/runs/{run}?wait_ms=60000&chain=true", None, {}),
    ("POST", "/runs/{run_id}/cancel", "/runs/{run}/cancel", None, {}),
    ("POST", "/chat/{id}/resume", "/chat/{conversation}/resume", {"allow_tokens": 50000}, {}),
    ("POST", "", "/chat", GATED, {}),
    ("GET", "/approvals", "/approvals?status=pending", None, {}),
    ("GET", "/approvals/{id}", "/approvals/{approval}", None, {}),
    ("POST", "/approvals/{id}", "/approvals/{approval}", ALLOWED, {}),
    ("GET", "/chat/{id}/remembered", "/chat/{conversation}/remembered", None, {}),
    ("DELETE", "/chat/{id}/remembered", "/chat/{conversation}/remembered", None, {}),
    ("POST", "/webhooks", "/webhooks", WEBHOOK, {}),
    ("GET", "/webhooks", "/webhooks", None, {}),
    ("GET", "/webhooks/{id}", HOOK, None, {}),
    ("PATCH", "/webhooks/{id}", HOOK, {"events": ["run.ended"]}, {}),
    ("GET", "/webhooks/{id}/deliveries", f"{HOOK}/deliveries?status=dead", None, {}),
    ("POST", "/webhooks/{id}/test", f"{HOOK}/test", None, {}),
    ("POST", REPLAY, f"{HOOK}/deliveries/{{delivery}}/replay", None, {}),
    ("POST", "/webhooks/{id}/secret", f"{HOOK}/secret", {"keep_old_ms": 86400000}, {}),
    ("POST", "/webhooks/release", "/webhooks/release", None, {}),
    ("DELETE", "/webhooks/{id}", HOOK, None, {}),
    ("POST", "/task", "/task", TASK, {}),
    ("GET", "/tasks", "/tasks?status=active", None, {}),
    ("GET", "/task/{id}", "/task/{task}", None, {}),
    ("PUT", "/task/{id}", "/task/{task}", {"prompt": "what did I say?"}, {}),
    ("POST", "/task/trigger", "/task/trigger", {"task_id": "{task}"}, {}),
    ("GET", "/task/{id}/runs", "/task/{task}/runs", None, {}),
    ("POST", "/task/check", "/task/check", {"max": 3}, {}),
    ("DELETE", "/task/{id}", "/task/{task}", None, {}),
    ("GET", "/usage", "/usage", None, {}),
    ("POST", "/tokens", "/tokens", {"conversation_id": "laptop", "expires_in_ms": 86400000}, {}),
    ("GET", "/tokens", "/tokens", None, {}),
    ("DELETE", "/tokens/{id}", "/tokens/{token}", None, {}),
    ("POST", "/principals", "/principals", {"name": "Ann", "budgets": {"day": {"dollars": 5}}}, {}),
    ("GET", "/principals", "/principals", None, {}),
    ("GET", "/principals/{id}", "/principals/{principal}", None, {}),
    ("GET", "/principals/{id}/remains", "/principals/{principal}/remains", None, {}),
    ("GET", "/audit", "/audit?limit=1", None, {}),
    ("PATCH", "/principals/{id}", "/principals/{principal}", {"status": "suspended"}, {}),
    ("POST", f"{TOKENS}", "/principals/operator/tokens", {"name": "phone", "scopes": ["chat"]}, {}),
    ("GET", f"{TOKENS}", "/principals/operator/tokens", None, {}),
    ("DELETE", f"{TOKENS}/{{token_id}}", "/principals/operator/tokens/{token}", None, {}),
    ("DELETE", "/principals/{id}", "/principals/{principal}", None, {}),
    ("GET", "/me", "/me", None, {}),
    ("POST", "/me/tokens", "/me/tokens", {"name": "script", "scopes": ["tasks"]}, {}),
    ("GET", "/me/tokens", "/me/tokens", None, {}),
    ("DELETE", "/me/tokens/{token_id}", "/me/tokens/{token}", None, {}),
    ("PUT", "/admin/memory", "/admin/memory", {"text": "# Notes\n", "version": None}, {}),
    ("GET", "/admin/workspace", "/admin/workspace?path=MEMORY.md", None, {}),
    ("GET", "/admin/skills", "/admin/skills", None, {}),
    ("POST", "/admin/reload-skills", "/admin/reload-skills", None, {}),
    ("GET", "/v1/models", "/v1/models", None, {}),
    ("GET", "/v1/models/{id}", "/v1/models/picoclaw", None, {}),
    ("POST", "/v1/chat/completions", "/v1/chat/completions", ASKED, {"X-Conversation-ID": "oslo"}),
    ("POST", "/v1/responses", "/v1/responses", {"input": "what did I say?"}, {}),
    ("POST", "/v1/responses/{id}/cancel", "/v1/responses/{response}/cancel", None, {}),
    ("POST", "", "/v1/responses", {"input": "and before?", "previous_response_id": "{response}"}, {}),
    ("GET", "/v1/responses/{id}", "/v1/responses/{response}", None, {}),
    ("GET", "/v1/responses/{id}/input_items", "/v1/responses/{response}/input_items", None, {}),
    ("DELETE", "/v1/responses/{id}", "/v1/responses/{response}", None, {}),
    ("POST", "/mcp", "/mcp", INITIALIZE, {}),
    ("DELETE", "/mcp", "/mcp", None, {"Mcp-Session-Id": "{session}"}),
    ("GET", "/mcp/servers", "/mcp/servers", None, {}),
    ("GET", "/mcp/servers/{name}", "/mcp/servers/wiki", None, {}),
    ("POST", f"{SIGN_IN}", "/mcp/servers/wiki/sign-in", {"redirect_uri": RETURN}, {}),
    ("POST", f"{SIGN_IN}/callback", "/mcp/servers/wiki/sign-in/callback", {"callback": CALLBACK}, {}),
    ("DELETE", f"{SIGN_IN}", "/mcp/servers/wiki/sign-in", None, {}),
    ("POST", "/channels/{name}/webhook", "/channels/telegram/webhook", {}, {}),
    ("PUT", FILE, "/chat/{conversation}/files/data/prices.csv", "fruit,price", {"If-None-Match": "*"}),
    ("POST", "/chat/{id}/files", "/chat/{conversation}/files?path=letters", FORM, FORM_TYPE),
    ("GET", "/chat/{id}/files", "/chat/{conversation}/files?prefix=data/", None, {}),
    ("GET", FILE, "/chat/{conversation}/files/data/prices.csv", None, {"Range": "bytes=0-4"}),
    ("POST", FILE, "/chat/{conversation}/files/data/prices.csv", {"move_to": "old/prices.csv"}, {}),
    ("DELETE", FILE, "/chat/{conversation}/files/old?recursive=true", None, {}),
    ("DELETE", "/chat/{id}", "/chat/{conversation}", None, {}),
    ("GET", "/health", "/health", None, {}),
    ("GET", "/metrics", "/metrics", None, {}),
    ("GET", "/openapi.json", "/openapi.json", None, {}),
    ("POST", "/control/stop", "/control/stop", {"reason": "a new version"}, {}),
]

FIXED: Final = {
    "input_tokens": 1200,
    "prompt_tokens": 1200,
    "output_tokens": 40,
    "completion_tokens": 40,
    "tokens": 1240,
    "total_tokens": 1240,
    "duration_ms": 41,
    "created": 1803888000,
    "sequence": 7,
    "level": 3,
    "landlock_abi": 7,
    "own_uid": True,
    "description": "…",
    "next_cursor": "5b31…",
}
SECONDS: Final = FIXED["created"]
PATTERNS: Final = {
    r"\w{3} \d{4}-\d\d-\d\dT[\d:]+[+-]\d\d:\d\d (?=[A-Z])": "Mon 2027-03-01T09:00:00+01:00 ",
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z": "2027-03-01T08:00:00.000Z",
    r"^\d{4}-\d\d-\d\d$": "2027-03-01",
    r"pico_[\w-]{40,}": "pico_…",
    r"whsec_[\w+/=]{32,}": "whsec_…",
    r"\b[0-9a-f]{64}\b": "9f86d081…",
    r"^[0-9a-f]{32}$": "6bcbf014…",
    r"^/.*/built_in/": "…/built_in/",
    r"^directory /.*/[0-9a-f]{32}": "directory /var/lib/picoclaw/principals/6bcbf014…",
}
MADE: Final = re.compile(r"\b([a-z]+)-[0-9a-f]{8}-[0-9a-f-]{27}\b")


ONCE_AT_REST: Final = {("POST", "/approvals/{approval}"), ("GET", "/chat/{conversation}/remembered")}
"""What is answered otherwise while a run is on its way: the one that asked, or the one that goes on."""


class Recording:
    """The answers of one host, with what differs from host to host replaced."""

    def __init__(self) -> None:
        self.told: dict[str, str] = {}
        self._ids: dict[str, str] = {}

    def answer(self, client: httpx2.Client, call: Call) -> str:
        """Make the call and return request and answer as the page shows them."""
        method, _, url, body, headers = call
        sent = json.loads(self._fill(json.dumps(body)))
        content = sent.replace("\n", "\r\n") if isinstance(sent, str) else None
        if (method, url) in ONCE_AT_REST:
            until(lambda: "picoclaw_active_runs 0" in client.get("/metrics").text)
        answer = client.request(
            method,
            self._fill(url),
            json=None if content else sent,
            content=content,
            headers={name: self._fill(value) for name, value in headers.items()},
        )
        self._remember(method, url, answer)
        shown = [f"{method} {self.fixed(self._fill(url))}"]
        shown += [f"{name}: {self._shown_header(value)}" for name, value in headers.items()]
        if sent is not None:
            shown += ["", sent if content else _json(self.fixed(sent))]
        request = "\n".join(shown)
        return f"```http\n{request}\n```\n\n{self._answered(answer)}"

    def _shown_header(self, value: str) -> str:
        return "…" if value == "{session}" else value

    def _answered(self, answer: httpx2.Response) -> str:
        kind = answer.headers.get("content-type", "")
        if answer.status_code == 204 or not answer.content:
            return f"`{answer.status_code}`, without a body."
        if kind.startswith("application/json"):
            body = self.fixed(answer.json())
            if "openapi" in body:
                body = {"openapi": body["openapi"], "info": body["info"], "paths": "…", "components": "…"}
            return f"`{answer.status_code}`\n\n```json\n{_json(body)}\n```"
        text = answer.text
        if kind.startswith("text/event-stream"):
            text = re.sub(r"(?<=data: )\{.*\}", lambda data: self._event(data[0]), text).strip()
        else:
            text = "\n".join([*text.splitlines()[:3], "…"])
            text = re.sub(r" [\d.]+$", " 16.0", text, flags=re.M)
        return f"`{answer.status_code}`\n\n```text\n{text}\n```"

    def _event(self, data: str) -> str:
        return json.dumps(self.fixed(json.loads(data)), ensure_ascii=False)

    def _remember(self, method: str, url: str, answer: httpx2.Response) -> None:
        made = answer.json() if "json" in answer.headers.get("content-type", "") else {}
        if (method, url) == ("POST", "/chat"):
            self.told |= {"conversation": made["conversation_id"], "run": made["run_id"]}
            for request in made.get("requests", ()):
                self.told |= {"approval": request["id"], "input_sha256": request["input_sha256"]}
        elif (method, url) == ("POST", "/webhooks"):
            self.told["webhook"] = made["id"]
        elif method == "POST" and url.endswith("/test"):
            self.told["delivery"] = made["id"]
        elif (method, url) == ("POST", "/v1/responses"):
            self.told["response"] = made["id"]
        elif (method, url) == ("POST", "/task"):
            self.told["task"] = made["id"]
        elif method == "POST" and url.endswith("/tokens"):
            self.told["token"] = made["id"]
        elif (method, url) == ("POST", "/principals") and "id" in made:
            self.told["principal"] = made["id"]
        elif (method, url) == ("POST", "/mcp"):
            self.told["session"] = answer.headers["mcp-session-id"]

    def _fill(self, text: str) -> str:
        for name, value in self.told.items():
            text = text.replace("{" + name + "}", value)
        return text

    def fixed(self, value: Any) -> Any:
        """Return the value with what another host would say otherwise replaced."""
        match value:
            case dict():
                times = ("created_at", "completed_at")
                value |= {key: SECONDS for key in times if isinstance(value.get(key), int)}
                # What a receiver that isn't there was told meanwhile, or not yet.
                value |= dict.fromkeys({"failing_since", "last_error"} & value.keys())
                return {
                    key: FIXED[key] if key in FIXED and item is not None else self.fixed(item)
                    for key, item in value.items()
                }
            case list():
                return [self.fixed(item) for item in value]
            case str():
                for pattern, fixed in PATTERNS.items():
                    value = re.sub(pattern, fixed, value)
                return MADE.sub(self._numbered, value)
        return value

    def _numbered(self, found: re.Match[str]) -> str:
        count = sum(name.startswith(f"{found[1]}-") for name in self._ids.values()) + 1
        return self._ids.setdefault(found[0], f"{found[1]}-{count}")


def page(host: HostProcess) -> str:
    """Return the page, by what this host says and answers."""
    recording = Recording()
    with host.client() as client:
        document = client.get("/openapi.json").json()
        examples = {(call[0], call[1]): recording.answer(client, call) for call in CALLS}
    schemas = document["components"]["schemas"]
    document = _inlined(document, {name: one for name, one in schemas.items() if "enum" in one})
    schemas = document["components"]["schemas"]
    parts = [HEAD]
    for group, prefixes in GROUPS.items():
        parts.append(f"## {group}\n")
        for path, methods in document["paths"].items():
            if path.startswith(prefixes) and (path != "/metrics" or "/metrics" in prefixes):
                parts += [
                    _route(method.upper(), path, told, examples[method.upper(), path], schemas)
                    for method, told in methods.items()
                ]
    parts.append("## Objects\n")
    bodies = {_body(told) for methods in document["paths"].values() for told in methods.values()}
    parts += [
        f"### {name}\n\n{schema.get('description', '').strip()}\n\n{_fields(name, schema)}\n"
        for name, schema in sorted(schemas.items())
        if "properties" in schema and name not in bodies
    ]
    return "\n".join(parts).rstrip() + "\n"


def _inlined(value: Any, enums: Mapping[str, Any]) -> Any:
    """Return the document with the names of lists of words replaced by the words."""
    if isinstance(value, list):
        return [_inlined(item, enums) for item in value]
    if not isinstance(value, dict):
        return value
    name = str(value.get("$ref", "")).rpartition("/")[2]
    return enums.get(name) or {key: _inlined(item, enums) for key, item in value.items()}


def _body(told: Mapping[str, Any]) -> str:
    """Return the name of the request's body, or nothing."""
    takes = told.get("requestBody", {"content": {}})
    schema = _schema(takes) if "application/json" in takes["content"] else {}
    return str(schema.get("$ref", "")).rpartition("/")[2]


def _route(method: str, path: str, told: Mapping[str, Any], example: str, schemas: Mapping[str, Any]) -> str:
    said = [f"### `{method} {path}`\n", f"{told['summary']}.\n"]
    if told["parameters"]:
        rows = [
            f"| `{each['name']}` | {each['in']} | {_type(each['schema'])} | {each['description']} |"
            for each in told["parameters"]
        ]
        said += ["| Parameter | In | Is | Meaning |\n|---|---|---|---|", *rows, ""]
    said += [
        f"Body: `{kind}`.\n" for kind in told.get("requestBody", {}).get("content", {}) if "json" not in kind
    ]
    if name := _body(told):
        said.append(f"{_fields(name, schemas[name], 'Field of the body')}\n")
    said.append(f"Answers: {', '.join(_answers(told['responses']))}.\n")
    return "\n".join([*said, f"{example}\n"])


def _answers(responses: Mapping[str, Any]) -> Iterator[str]:
    for status, told in responses.items():
        if status.startswith("2"):
            kinds = [_type(_schema(told))] if "application/json" in told.get("content", {}) else []
            kinds += [f"`{kind}`" for kind in told.get("content", {}) if kind != "application/json"]
            yield f"{status} {' or '.join(kinds)}".strip()
        elif status in ("404", "409"):
            yield f"{status} if it is {'not there' if status == '404' else 'refused now'}"


def _schema(told: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = told["content"]["application/json"].get("schema", {})
    return found


def _fields(name: str, schema: Mapping[str, Any], heading: str = "Field") -> str:
    needed = set(schema.get("required", ()))
    rows = []
    for field, told in schema["properties"].items():
        meaning = MEANINGS.get(f"{name}.{field}") or MEANINGS[field]
        default = told.get("default")
        given = f"; default `{json.dumps(default)}`" if default is not None else ""
        optional = "" if field in needed else ", optional"
        rows.append(f"| `{field}` | {_type(told)}{optional}{given} | {meaning} |")
    return f"| {heading} | Is | Meaning |\n|---|---|---|\n" + "\n".join(rows)


NAMES: Final = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "object": "object",
    "null": "null",
    "array": "list",
}


def _type(schema: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_type(each) for each in schema["anyOf"]))
    if "enum" in schema:
        return " or ".join(
            f"`{each if isinstance(each, str) else json.dumps(each)}`" for each in schema["enum"]
        )
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return NAMES.get(schema.get("type", ""), "any JSON") + _bounds(schema)


def _bounds(schema: Mapping[str, Any]) -> str:
    if "maxLength" in schema:
        return f", at most {schema['maxLength']:,} characters"
    low = schema.get("minimum", schema.get("exclusiveMinimum", -1) + 1)
    if "maximum" in schema and schema["maximum"] < 2**53:
        return f", {low:,} to {schema['maximum']:,}"
    return f", at least {low:,}" if low and schema.get("type") == "integer" else ""


def _json(value: Any) -> str:
    """Return it as the page shows it: short parts on one line."""
    return _laid_out(value, "")


def _laid_out(value: Any, indent: str) -> str:
    line = json.dumps(value, ensure_ascii=False)
    if len(line) + len(indent) <= 100 or not isinstance(value, dict | list) or not value:
        return line
    deeper = indent + "  "
    if isinstance(value, list):
        inner = [f"{deeper}{_laid_out(item, deeper)}" for item in value]
        return "[\n" + ",\n".join(inner) + f"\n{indent}]"
    inner = [f"{deeper}{json.dumps(key)}: {_laid_out(item, deeper)}" for key, item in value.items()]
    return "{\n" + ",\n".join(inner) + f"\n{indent}}}"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory, running_host(Path(directory) / "host", None) as host:
        Path(sys.argv[1]).write_text(page(host))

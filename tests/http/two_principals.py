"""Two principals of one host, who know each other's ids."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx2

from tests.running import HostProcess, directive

SETTINGS = {"PICOCLAW_PRINCIPALS_ISOLATION": "weak"}
TASK = {"prompt": "what did I say?", "schedule_type": "interval", "schedule_value": "3600000"}


@dataclass
class Somebody:
    """A principal, a client with a token of its own, and the ids of what it has."""

    id: str
    client: httpx2.Client
    token: dict[str, Any]
    ids: dict[str, str] = field(default_factory=dict)

    def chat(self, message: str, **more: Any) -> dict[str, Any]:
        answer = self.client.post("/chat", json={"message": message, **more})
        assert answer.status_code == 200, answer.text
        said: dict[str, Any] = answer.json()
        return said


@contextmanager
def somebody(host: HostProcess, name: str, **terms: Any) -> Iterator[Somebody]:
    """Make a principal with a token for all that it may."""
    with host.client() as operator:
        made = operator.post("/principals", json={"name": name, **terms})
        assert made.status_code == 201, made.text
        principal_id = made.json()["id"]
        token = operator.post(f"/principals/{principal_id}/tokens", json={"name": name}).json()
    with host.client(token["token"]) as client:
        yield Somebody(principal_id, client, token)


APPEND = {"name": "append_file", "input": {"path": "notes", "content": "x"}}
FUNCTION: dict[str, Any] = {"type": "function", "name": "weather", "parameters": {"type": "object"}}
HOOK = {"url": "https://hooks.example.com/here", "events": ["run.paused"]}


def asking(*tools: dict[str, Any]) -> str:
    return directive(steps=[{"tools": list(tools)}, {"text": "done"}])


def settle(who: Somebody, secret: str) -> Somebody:
    """Let somebody have one of each thing, all of them with the secret in their texts."""
    said = who.chat(f"remember {secret}")
    who.ids |= {"conversation": said["conversation_id"], "run": said["run_id"], "message": said["message_id"]}
    who.ids["main_run"] = who.chat(f"also {secret}", conversation_id="main")["run_id"]
    titled = who.client.patch(f"/chat/{said['conversation_id']}", json={"title": f"about {secret}"})
    assert titled.status_code == 200
    task = who.client.post("/task", json={**TASK, "id": "daily", "prompt": f"say {secret}"})
    assert task.status_code == 201, task.text
    made = who.client.post("/task", json={**TASK, "prompt": f"say {secret}"}).json()
    who.ids |= {"task": made["id"], "task_conversation": made["conversation_id"], "token": who.token["id"]}
    return who


def leave_waiting(who: Somebody, secret: str) -> Somebody:
    """Let somebody have also what waits for people, programs and other hosts, and a file."""
    gate = [{"tool": "append_file", "do": "ask"}]
    for name in ("approval", "remembered"):
        told = who.chat(f"{asking(APPEND)} {secret}", permissions=gate)
        who.ids |= {name: told["requests"][0]["id"], f"{name}_conversation": told["conversation_id"]}
    shown = told["requests"][0]["input_sha256"]
    allowed = {"decision": "allow", "input_sha256": shown, "remember": "conversation"}
    assert who.client.post(f"/approvals/{who.ids['remembered']}", json=allowed).status_code == 200
    call = {"name": "client__weather", "input": {"place": secret}}
    asked = {"model": "picoclaw", "input": asking(call), "tools": [FUNCTION]}
    response = who.client.post("/v1/responses", json=asked).json()
    who.ids |= {"response": response["id"], "call": response["output"][-1]["call_id"]}
    who.ids["answered"] = who.client.post(
        "/v1/responses", json={"model": "picoclaw", "input": secret}
    ).json()["id"]
    webhook = who.client.post("/webhooks", json=HOOK)
    assert webhook.status_code == 201, webhook.text
    who.ids["webhook"] = webhook.json()["id"]
    assert who.client.post(f"/webhooks/{who.ids['webhook']}/test").status_code in (200, 202)
    deliveries = who.client.get(f"/webhooks/{who.ids['webhook']}/deliveries").json()["deliveries"]
    who.ids["delivery"] = deliveries[0]["id"]
    for conversation in (who.ids["conversation"], "main"):
        put = who.client.put(f"/chat/{conversation}/files/{secret}.txt", content=secret.encode())
        assert put.status_code in (200, 201), put.text
    return who

"""Two principals of one host, who know each other's ids."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx2

from tests.running import HostProcess

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

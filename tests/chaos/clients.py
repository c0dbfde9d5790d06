"""Clients that talk to a host until it dies under them, and note what it told them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Awaitable, Callable
from typing import Any, Final

import anyio
import httpx2

from tests.chaos.ledger import Ledger
from tests.running import TOKEN, directive

Client = Callable[[httpx2.AsyncClient, Ledger, "Names"], Awaitable[None]]

SEND: Final = "mcp__picoclaw__send_message"


class Names:
    """Texts and keys that are never used twice in a test."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)

    def new(self, kind: str) -> str:
        return f"{kind}-{next(self._numbers)}"


async def plain_chat(client: httpx2.AsyncClient, ledger: Ledger, names: Names) -> None:
    """One conversation, message after message."""
    conversation = None
    for _ in range(10):
        text = names.new("plain")
        ledger.sent.add(text)
        body = {"message": directive(text, text="fine"), "conversation_id": conversation or ""}
        answer = await client.post("/chat", json=body)
        if answer.status_code != 200:
            return
        told = answer.json()
        ledger.answered(told)
        ledger.messages.add(told["message_id"])
        conversation = told["conversation_id"]


async def speaking_chat(client: httpx2.AsyncClient, ledger: Ledger, names: Names) -> None:
    """The agent says something through its tool server before it answers; read as a stream."""
    text, said = names.new("speaking"), names.new("said")
    ledger.sent.add(text)
    ledger.said.add(said)
    steps = [{"tools": [{"name": SEND, "input": {"text": said}}]}, {"text": "told them"}]
    body = {"message": directive(text, steps=steps), "stream": True}
    async with client.stream("POST", "/chat", json=body) as response:
        if response.status_code != 200:
            return
        name = ""
        async for line in response.aiter_lines():
            kind, _, value = line.partition(": ")
            if kind == "event":
                name = value
            elif kind == "data":
                _note(ledger, name, json.loads(value))


async def keyed_chat(client: httpx2.AsyncClient, ledger: Ledger, names: Names) -> None:
    """With an Idempotency-Key: after a crash the same request is sent again."""
    text, said = names.new("keyed"), names.new("said")
    ledger.sent.add(text)
    ledger.said.add(said)
    steps = [{"tools": [{"name": SEND, "input": {"text": said}}]}, {"text": "told them"}]
    body = {"message": directive(text, steps=steps)}
    key = names.new("key")
    ledger.keys[key] = (body, "")
    await post_keyed(client, ledger, key)


async def post_keyed(client: httpx2.AsyncClient, ledger: Ledger, key: str) -> bool:
    """Send a keyed request (again); returns whether it was answered."""
    body, before = ledger.keys[key]
    answer = await client.post("/chat", json=body, headers={"Idempotency-Key": key})
    if answer.status_code != 200:
        return False
    told = answer.json()
    assert before in ("", told["run_id"]), f"{key} stood for {before}, now for {told['run_id']}"
    ledger.keys[key] = (body, told["run_id"])
    ledger.runs[told["run_id"]] = told["status"]
    ledger.messages.add(told["message_id"])
    ledger.outbound |= {message["id"] for message in told.get("outbound_messages", [])}
    return True


async def tasks(client: httpx2.AsyncClient, ledger: Ledger, names: Names) -> None:
    """Make a task, run it twice."""
    name = names.new("task")
    body = {
        "id": name,
        "prompt": directive(names.new("prompt"), text="did it"),
        "schedule_type": "interval",
        "schedule_value": "86400000",
    }
    if (await client.post("/task", json=body)).status_code != 201:
        return
    ledger.tasks.add(name)
    for _ in range(2):
        answer = await client.post("/task/trigger", json={"task_id": name})
        if answer.status_code != 200:
            return
        told = answer.json()
        ledger.runs[told["run_id"]] = told["status"]
        ledger.triggered.add((name, told["run_id"]))


KINDS: Final[tuple[Client, ...]] = (plain_chat, plain_chat, speaking_chat, keyed_chat, tasks)


async def load(url: str, ledger: Ledger, names: Names) -> None:
    """Keep the host busy until this is cancelled."""

    async def keep_on(kind: Client) -> None:
        async with new_client(url) as client:
            while True:
                try:
                    await kind(client, ledger, names)
                except httpx2.TransportError:
                    await anyio.sleep(0.005)

    async with anyio.create_task_group() as group:
        for kind in KINDS:
            group.start_soon(keep_on, kind)


def new_client(url: str) -> httpx2.AsyncClient:
    """Return a client with the token."""
    return httpx2.AsyncClient(
        base_url=url, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=60, trust_env=False
    )


def _note(ledger: Ledger, event: str, data: dict[str, Any]) -> None:
    if event == "start":
        ledger.messages.add(data["message_id"])
    elif event == "message":
        ledger.outbound.add(data["id"])
    elif event == "done":
        ledger.answered(data)
        ledger.messages.add(data["message_id"])

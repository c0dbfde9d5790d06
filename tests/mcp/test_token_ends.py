"""A token that ends: nothing that began before acts after it, and its conversation is not born again."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from shared.clock import now_ms
from shared.errors import Unauthorized
from shared.ids import Token
from shared.principals import Actor
from shared.store import open_tool_store
from shared.store.contract import acting
from shared.store.sqlite.store import SqliteStore
from tests.mcp.over_http import STATELESS, RawHttp, new_token, request
from tests.running import HostProcess, running_host, until

TASK = {"prompt": "p", "schedule_type": "interval", "schedule_value": "60000"}
META = {
    f"io.modelcontextprotocol/{name}": value
    for name, value in {
        "protocolVersion": STATELESS,
        "clientInfo": {"name": "test", "version": "1"},
        "clientCapabilities": {},
    }.items()
}


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    with running_host(tmp_path_factory.mktemp("host"), None) as host:
        yield host


@contextmanager
def held_back(host: HostProcess, token: str) -> Iterator[socket.socket]:
    """Begin to make a task at /mcp; the body's last byte is missing."""
    params = {"name": "schedule_task", "arguments": TASK, "_meta": META}
    body = json.dumps(request(1, "tools/call", params)).encode()
    head = (
        f"POST /mcp HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        f"MCP-Protocol-Version: {STATELESS}\r\nMcp-Method: tools/call\r\nMcp-Name: schedule_task\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", host.port), 60) as peer:
        peer.sendall(head.encode() + body[:-1])
        yield peer


def completed(peer: socket.socket) -> bytes:
    peer.sendall(b"}")
    answer = b""
    while piece := peer.recv(65536):
        answer += piece
    return answer


def tasks(host: HostProcess) -> list[dict[str, object]]:
    with host.client() as client:
        found: list[dict[str, object]] = client.get("/tasks").json()["tasks"]
        return found


def revoke(client: httpx2.Client, token: dict[str, str]) -> None:
    assert client.delete(f"/tokens/{token['id']}").status_code == 204


def delete(client: httpx2.Client, token: dict[str, str]) -> None:
    assert client.delete(f"/chat/{token['conversation_id']}").status_code == 204


def delete_and_make_again(client: httpx2.Client, token: dict[str, str]) -> None:
    delete(client, token)
    made = client.post("/tokens", json={"conversation_id": token["conversation_id"]})
    assert made.status_code == 201


def test_a_request_whose_token_lasts_may_take_its_time(host: HostProcess) -> None:
    token = new_token(host, "patient")
    with held_back(host, token["token"]) as peer:
        assert b" 200 OK" in completed(peer)
    assert [task["conversation_id"] for task in tasks(host)] == ["patient"]


@pytest.mark.parametrize("end", [revoke, delete, delete_and_make_again])
@pytest.mark.parametrize("main", [False, True])
def test_a_request_that_was_held_back_does_nothing_after_its_tokens_end(
    host: HostProcess, end: object, main: bool
) -> None:
    name = f"ended-{getattr(end, '__name__')}-{main}"  # noqa: B009
    token = new_token(host, name, main=main)
    before = tasks(host)
    with RawHttp(host, token["token"]) as client:
        # A tool server of this token is there already.
        client.hello()
        with held_back(host, token["token"]) as peer, host.client() as operator:
            end(operator, token)  # type: ignore[operator]
            answer = completed(peer)
        assert b"HTTP/1.1 401" in answer
        assert client.say(request(2, "tools/list", {})).status_code == 401
    assert tasks(host) == before
    if end is delete:
        with host.client() as operator:
            assert operator.get(f"/chat/{name}").status_code == 404


def test_a_request_that_was_held_back_does_nothing_after_its_token_expired(host: HostProcess) -> None:
    token = new_token(host, "brief", expires_in_ms=1500)
    before = tasks(host)
    with held_back(host, token["token"]) as peer:
        ended = time.monotonic() + 1.5
        until(lambda: time.monotonic() > ended)
        assert b"HTTP/1.1 401" in completed(peer)
    assert tasks(host) == before


async def test_a_request_s_transactions_write_nothing_once_its_token_has_ended(tmp_path: Path) -> None:
    host = SqliteStore(tmp_path / "db")
    await host.conversations.create("c", now_ms())
    await host.tokens.add(Token("revoked", "c", True, now_ms(), None), b"r" * 32)
    acting_as = acting.set(Actor("operator", "revoked", "http", None))
    await host.conversations.rename("c", "before")
    acting.reset(acting_as)
    assert await host.tokens.revoke("revoked")
    acting_as = acting.set(Actor("operator", "revoked", "http", None))
    with pytest.raises(Unauthorized):
        await host.conversations.rename("c", "after")
    acting.reset(acting_as)
    found = await host.conversations.get("c")
    assert found is not None
    assert found.title == "before"
    await host.close()


async def test_the_transaction_that_writes_looks_at_the_token_itself(tmp_path: Path) -> None:
    host = SqliteStore(tmp_path / "db")
    await host.conversations.create("c", now_ms())
    digests = {name: bytes([number]) * 32 for number, name in enumerate(("revoked", "expired", "orphan"))}
    for name, digest in digests.items():
        await host.tokens.add(Token(name, "c", True, now_ms(), None), digest)
    await host.tokens.add(Token("old", "c", True, 0, 1), b"o" * 32)
    stores = {
        name: open_tool_store(tmp_path / "db", None, None, name) for name in ("revoked", "orphan", "old")
    }
    for name in ("revoked", "orphan"):
        await stores[name].outbound.add("c", "c", "hello", "x", now_ms())
    assert await host.tokens.revoke("revoked")
    for name in ("revoked", "old"):
        with pytest.raises(Unauthorized):
            await stores[name].outbound.add("c", "c", "too late", "x", now_ms())
    await host.conversations.delete("c")
    with pytest.raises(Unauthorized):
        await stores["orphan"].conversations.ensure("c", now_ms())
    assert await host.conversations.get("c") is None
    for store in (*stores.values(), host):
        await store.close()

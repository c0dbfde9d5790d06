"""The host's /mcp for tests: tokens, the official client over HTTP, and requests message by message."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx2
from mcp.client import Client
from mcp.client.client import ConnectMode
from mcp.client.streamable_http import streamable_http_client

from tests.running import HostProcess

SECONDS = 60
STATELESS = "2026-07-28"
HANDSHAKE = "2025-11-25"
ME = {"name": "test", "version": "1"}
HELLO = {"protocolVersion": HANDSHAKE, "capabilities": {}, "clientInfo": ME}


def new_token(host: HostProcess, conversation_id: str, **wanted: Any) -> dict[str, Any]:
    """Make a token at the host."""
    with host.client() as client:
        answer = client.post("/tokens", json={"conversation_id": conversation_id, **wanted})
        assert answer.status_code == 201, answer.text
        made: dict[str, Any] = answer.json()
        return made


@asynccontextmanager
async def official_client(host: HostProcess, token: str, mode: ConnectMode = "auto") -> AsyncIterator[Client]:
    """Yield the SDK's client on the host's /mcp."""
    headers = {"Authorization": f"Bearer {token}"}
    with anyio.fail_after(SECONDS):
        async with (
            httpx2.AsyncClient(headers=headers, trust_env=False, timeout=SECONDS) as http,
            Client(
                streamable_http_client(f"{host.url}/mcp", http_client=http),
                mode=mode,
                read_timeout_seconds=SECONDS,
            ) as client,
        ):
            yield client


class RawHttp:
    """A client that says at /mcp exactly what it is told to."""

    def __init__(self, host: HostProcess, token: str) -> None:
        self.http = host.client(token)
        self.session: str | None = None

    def __enter__(self) -> RawHttp:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def post(self, content: bytes, **headers: str) -> httpx2.Response:
        """Send a body as it is; ``mcp_method`` stands for the header Mcp-Method."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.http.post("/mcp", content=content, headers={"content-type": "application/json", **named})

    def say(self, message: Any, **headers: str) -> httpx2.Response:
        """Send a message, in the session if there is one."""
        session = {} if self.session is None else {"mcp_session_id": self.session}
        return self.http.post(
            "/mcp",
            json=message,
            headers={name.replace("_", "-"): value for name, value in {**session, **headers}.items()},
        )

    def hello(self, **params: Any) -> httpx2.Response:
        """Shake hands; later messages go into the session."""
        answer = self.say(request(0, "initialize", {**HELLO, **params}))
        self.session = answer.headers.get("mcp-session-id")
        return answer

    def ask(self, request_id: int | str, method: str, params: dict[str, Any] | None = None) -> Any:
        """Ask in the session and return the message that is the answer."""
        answer = self.say(request(request_id, method, params or {}))
        assert answer.status_code == 200, answer.text
        return answer.json()

    def tool(self, name: str, **arguments: Any) -> Any:
        """Call a tool in the session and return its result."""
        return self.ask(1, "tools/call", {"name": name, "arguments": arguments})["result"]

    def stateless(self, method: str, params: dict[str, Any] | None = None, **headers: str) -> httpx2.Response:
        """Ask in the era without sessions, with the headers it wants unless others are given."""
        params = {"_meta": envelope(), **(params or {})}
        subject = params.get("name") or params.get("uri")
        named = {"mcp_protocol_version": STATELESS, "mcp_method": method}
        named |= {"mcp_name": str(subject)} if subject else {}
        body = request(1, method, params)
        sent = {name.replace("_", "-"): value for name, value in {**named, **headers}.items()}
        return self.http.post("/mcp", json=body, headers=sent)


def envelope(version: str = STATELESS) -> dict[str, Any]:
    """Return what each request says of its client in the era without sessions."""
    named = {"protocolVersion": version, "clientInfo": ME, "clientCapabilities": {}}
    return {f"io.modelcontextprotocol/{name}": value for name, value in named.items()}


def request(request_id: int | str, method: str, params: dict[str, Any]) -> dict[str, Any]:
    """Return a JSON-RPC request."""
    return {"jsonrpc": "2.0", "id": request_id, "method": method, "params": params}

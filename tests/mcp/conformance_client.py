"""The host's MCP client for the conformance suite: connects, signs in as a person would, calls each tool."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import anyio
import httpx2

from host.mcp_clients.external import ExternalServers, Reach, open_external
from host.mcp_clients.server_config import ServerConfig
from host.mcp_clients.sign_in import Attempt
from host.mcp_clients.toolset import Relay
from host.runs.operators_servers import with_sign_in
from shared.settings import load
from shared.store import open_store

BACK = "http://127.0.0.1:7624/callback"
CLIENT_DOCUMENT = "https://conformance-test.local/client-metadata.json"
TRIES = 3
SECONDS = 60.0
KNOWN = {"a": 5, "b": 3}


async def signed_in(config: ServerConfig) -> None:
    assert config.sign_in is not None
    async with anyio.create_task_group() as group, httpx2.AsyncClient(trust_env=False) as http:
        attempt = Attempt(config.sign_in, BACK, frozenset({"localhost", "127.0.0.1"}))
        answer = await http.get(await attempt.begin(group))
        await attempt.end(answer.headers["location"])


async def session(config: ServerConfig, calls: list[dict[str, Any]]) -> bool:
    """Make the calls, or call every tool once; return whether the server wants a sign-in first."""
    reach = Reach(connect_seconds=SECONDS, relay=Relay(answers=[(Anything(), "{}")]))
    async with open_external({"suite": config}, reach) as found:
        for toolset in found.toolsets:
            for call in calls:
                await toolset.call(f"mcp__suite__{call['name']}", call["arguments"])
            for spec in () if calls else toolset.specs:
                wanted = spec.input_schema.get("properties", {})
                given = {name: KNOWN.get(name, "x") for name in wanted}
                if "schema" in wanted:
                    given["schema"] = listed_schema(found)
                await toolset.call(spec.name, given)
    return config.sign_in is not None and config.sign_in.problem is not None


class Anything(str):
    """Stands for every question: the calls are those that are made with a person's answer at hand."""

    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        return True


def listed_schema(found: ExternalServers) -> Any:
    """Return the first tool's input schema, as the client keeps what a server lists."""
    return found._links[0].tools[0]["inputSchema"]


async def main(url: str) -> None:
    given = json.loads(os.environ.get("MCP_CONFORMANCE_CONTEXT", "{}"))
    calls = given.get("toolCalls", [])
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        entry = {"url": url} | {name: given[name] for name in ("client_id", "client_secret") if name in given}
        tools = {"mcp": {"servers": {"suite": entry}, "client_metadata_url": CLIENT_DOCUMENT}}
        (home / "config.json").write_text(json.dumps({"version": 3, "tools": tools}))
        settings = load({"PICOCLAW_HOME": folder, "API_TOKEN": "t" * 24, "SEAL_KEY": "k" * 43})
        store = open_store(home / "picoclaw.db")
        plain = {"suite": ServerConfig("http", url, trusted=True, timeout_ms=8000)}
        config = with_sign_in(plain, store, settings)["suite"]
        try:
            for _ in range(TRIES):
                if not await session(config, calls):
                    return
                await signed_in(config)
            await session(config, calls)
        finally:
            await store.close()


if __name__ == "__main__":
    anyio.run(main, sys.argv[1])

"""Clients that no one here wrote, as programs of their own, over stdio and over HTTP."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shared import jsons
from shared.ask_contract import ASK_TOOLS
from shared.tool_contract import tool_declarations
from tests.mcp.over_http import new_token
from tests.mcp.programs import HERE, NPM, node, npm_ci, python_with, run
from tests.mcp.running import environment
from tests.running import HostProcess, running_host

TOOLS = [*tool_declarations(is_main=False), *ASK_TOOLS]
DENIED = "Task not found or access denied."

with_npm = pytest.mark.skipif(NPM is None, reason="needs npm")


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    with running_host(tmp_path_factory.mktemp("host"), None) as host:
        yield host


@pytest.fixture(scope="module")
def modules() -> Path:
    return npm_ci(HERE / "node")


@pytest.fixture(params=["stdio", "http"])
def over(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def server(host: HostProcess, over: str, conversation_id: str) -> dict[str, Any]:
    """Return how a client reaches the conversation's tools: by a program beside the host, or by its URL."""
    if over == "http":
        token = new_token(host, conversation_id)["token"]
        return {"url": f"{host.url}/mcp", "headers": {"Authorization": f"Bearer {token}"}}
    env = environment(host.root / "local" / "picoclaw.db", conversation_id)
    return {"command": sys.executable, "args": ["-m", "mcp_server"], "env": env}


@with_npm
@pytest.mark.parametrize("mode", ["legacy", "auto", "pin"])
async def test_the_typescript_client_is_served_in_both_eras(
    modules: Path, host: HostProcess, over: str, mode: str
) -> None:
    name = f"node-{over}-{mode}"
    reached = server(host, over, name)
    target = [reached["url"]] if over == "http" else [reached["command"], *reached["args"]]
    told = {"env": {**reached.get("env", {}), "PATH": os.environ["PATH"]}, "headers": reached.get("headers")}
    seen = await run(node(), "client.mjs", mode, *target, env={"TOOL_SERVER": jsons.dumps(told)})
    assert seen["tools"] == TOOLS
    assert seen["said"]["conversation_id"] == seen["conversation"]["conversation_id"] == name
    assert seen["refused"] == DENIED


@pytest.mark.parametrize("package", ["mcp1", pytest.param("fastmcp", marks=pytest.mark.slow)])
async def test_the_older_sdk_and_fastmcp_are_served(host: HostProcess, over: str, package: str) -> None:
    name = f"{package}-{over}"
    python = python_with(HERE / "python" / f"{package}.lock")
    told = {"TOOL_SERVER": jsons.dumps(server(host, over, name)), "PYTHONPATH": ""}
    seen = await run(python, str(HERE / "python" / "client.py"), package, env=told, cwd=HERE / "python")
    assert seen["tools"] == TOOLS
    assert seen["version"] in (None, "2025-11-25")
    assert seen["said"]["conversation_id"] == seen["conversation"]["conversation_id"] == name
    assert seen["refused"] == [True, DENIED]


@with_npm
@pytest.mark.parametrize("era", ["legacy", "modern"])
async def test_the_inspector_lists_calls_and_reads(
    modules: Path, host: HostProcess, over: str, era: str
) -> None:
    name = f"inspector-{over}-{era}"
    reached = server(host, over, name)
    if over == "http":
        header = f"Authorization: {reached['headers']['Authorization']}"
        target = ["--server-url", reached["url"], "--transport", "http", "--header", header]
    else:
        told = [part for item in reached["env"].items() for part in ("-e", "=".join(item))]
        target = [*told, reached["command"], *reached["args"]]

    async def inspect(*asked: str) -> Any:
        program = str(modules / ".bin" / "mcp-inspector")
        return await run(node(), program, "--cli", *target, "--protocol-era", era, "--quiet", *asked)

    # --strict: the exit status tells of any schema that some client could not use.
    listed = await inspect("--method", "tools/list", "--strict")
    assert [tool["name"] for tool in listed["tools"]] == TOOLS
    call = ("--method", "tools/call", "--tool-name")
    made = await inspect(*call, "send_message", "--tool-arg", "text=hello")
    assert made["structuredContent"]["conversation_id"] == name
    resources = await inspect("--method", "resources/list")
    assert len(resources["resources"]) == 2
    read = await inspect("--method", "resources/read", "--uri", "picoclaw://tasks")
    assert jsons.loads(read["contents"][0]["text"])["tasks"] == []

"""Clients that no one here wrote: the MCP Inspector and the TypeScript client, as programs of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest

from shared import jsons
from shared.store.contract import Store
from shared.tool_contract import tool_declarations
from tests.mcp.running import environment

HERE = Path(__file__).parent / "node"
NODE = shutil.which("node")
NPM = shutil.which("npm")

pytestmark = pytest.mark.skipif(NODE is None or NPM is None, reason="node and npm are not installed")


@pytest.fixture(scope="module")
def modules() -> Path:
    """Return the directory with the pinned packages, installed once from the lock file."""
    installed = HERE / "node_modules" / ".package-lock.json"
    if not installed.exists() or installed.stat().st_mtime < (HERE / "package-lock.json").stat().st_mtime:
        command = [str(NPM), "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]
        subprocess.run(command, cwd=HERE, check=True, timeout=300)
        installed.touch()
    return HERE / "node_modules"


async def run(*command: str, env: dict[str, str] | None = None) -> Any:
    """Run a program and return the JSON it prints."""
    with anyio.fail_after(60):
        finished = await anyio.run_process(command, cwd=HERE, env={**os.environ, **(env or {})})
    return jsons.loads(finished.stdout)


@pytest.mark.parametrize("mode", ["legacy", "auto", "pin"])
async def test_the_typescript_client_is_served_in_both_protocol_eras(
    modules: Path, database: Path, store: Store, mode: str
) -> None:
    identity = jsons.dumps({**environment(database, "conv-node"), "PATH": os.environ["PATH"]})
    seen = await run(str(NODE), "client.mjs", mode, sys.executable, env={"TOOL_SERVER_ENV": identity})
    assert seen["tools"] == list(tool_declarations(is_main=False))
    assert seen["said"]["conversation_id"] == seen["conversation"]["conversation_id"] == "conv-node"
    assert seen["refused"] == "Task not found or access denied."
    assert [message.text for message in await store.outbound.said_by("conv-node", after=0)] == ["from node"]


async def inspect(database: Path, *request: str) -> Any:
    identity: list[str] = []
    for name, value in environment(database, "conv-i").items():
        identity += ["-e", f"{name}={value}"]
    inspector = HERE / "node_modules" / ".bin" / "mcp-inspector"
    return await run(
        str(NODE), str(inspector), "--cli", *identity, sys.executable, "-m", "mcp_server", *request
    )


async def test_the_inspector_lists_calls_and_reads(modules: Path, database: Path, store: Store) -> None:
    listed = await inspect(database, "--method", "tools/list")
    assert [tool["name"] for tool in listed["tools"]] == list(tool_declarations(is_main=False))
    call = ("--method", "tools/call", "--tool-name")
    said = await inspect(database, *call, "send_message", "--tool-arg", "text=hello")
    assert said["structuredContent"]["conversation_id"] == "conv-i"
    wrong = await inspect(database, *call, "get_task", "--tool-arg", "task_id=foreign")
    assert wrong["isError"]
    resources = await inspect(database, "--method", "resources/list")
    assert len(resources["resources"]) == 2
    read = await inspect(database, "--method", "resources/read", "--uri", "picoclaw://tasks")
    assert jsons.loads(read["contents"][0]["text"])["tasks"] == []
    assert len(await store.outbound.said_by("conv-i", after=0)) == 1

"""Every configuration block of docs/mcp.md, read as its program reads it; what it names really starts."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from mcp import StdioServerParameters
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client

from tests.mcp.over_http import new_token
from tests.mcp.programs import HERE, NPM, npm_ci
from tests.running import HostProcess, ModelProcess, running_host, running_model

ROOT = HERE.parent.parent
DOCS = (ROOT / "docs" / "mcp.md").read_text()
PROGRAMS = str(Path(sys.executable).parent)


def blocks(language: str) -> list[str]:
    """Return the blocks of one language that tell how to attach an agent."""
    found = re.findall(rf"^```{language}\n(.*?)^```", DOCS, re.DOTALL | re.MULTILINE)
    return [block for block in found if re.search("picoclaw|pico_", block)]


@pytest.fixture(scope="module")
def model() -> Iterator[ModelProcess]:
    with running_model("--any-client") as model:
        yield model


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    with running_host(tmp_path_factory.mktemp("host"), None) as host:
        yield host


@pytest.fixture(scope="module")
def token(host: HostProcess) -> str:
    return str(new_token(host, "laptop")["token"])


def filled(block: str, host: HostProcess, token: str) -> str:
    """Return the block with this host's database, address and token in it."""
    for shown, real in {
        "/var/lib/picoclaw/picoclaw.db": str(host.root / "local" / "picoclaw.db"),
        "http://127.0.0.1:9000": host.url,
        "pico_...": token,
    }.items():
        block = block.replace(shown, real)
    return block


def environment(home: Path, **more: str) -> dict[str, str]:
    path = f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}"
    return {"PATH": path, "HOME": str(home), "LANG": "C.UTF-8", **more}


async def works(server: dict[str, Any], token: str) -> None:
    """Hold that an entry of a configuration leads to the conversation's tools."""
    transport: Any
    async with httpx2.AsyncClient(trust_env=False, timeout=60) as http:
        if "url" in server:
            bearer = f"Bearer {token}" if "bearer_token_env_var" in server else None
            http.headers.update(server.get("headers") or {"Authorization": str(bearer)})
            transport = streamable_http_client(server["url"], http_client=http)
        else:
            env = {"PATH": environment(Path("/"))["PATH"], **server["env"]}
            transport = StdioServerParameters(command=server["command"], args=server["args"], env=env)
        with anyio.fail_after(60):
            async with Client(transport) as client:
                said = await client.call_tool("send_message", {"text": "from a block"})
    assert said.structured_content is not None
    assert said.structured_content["conversation_id"] == "laptop"


async def test_the_json_blocks_lead_to_the_tools(
    host: HostProcess, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", environment(Path("/"))["PATH"])
    found = [block for block in blocks("json") if "mcpServers" in block]
    written = [json.loads(filled(block, host, token)) for block in found]
    assert [set(block["mcpServers"]["picoclaw"]) & {"command", "url"} for block in written] == [
        {"command"},
        {"url"},
    ]
    for block in written:
        await works(block["mcpServers"]["picoclaw"], token)


async def test_the_toml_blocks_lead_to_the_tools(
    host: HostProcess, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", environment(Path("/"))["PATH"])
    written = [tomllib.loads(filled(block, host, token)) for block in blocks("toml")]
    assert len(written) == 2
    for block in written:
        await works(block["mcp_servers"]["picoclaw"], token)


async def test_the_python_blocks_run_as_they_stand(host: HostProcess, token: str, tmp_path: Path) -> None:
    written = [filled(block, host, token) for block in blocks("python")]
    assert len(written) == 2
    for block in written:
        imports = "\n".join(line for line in block.splitlines() if re.match("from|import", line))
        rest = block.replace(imports, "")
        script = (
            f"{imports}\nimport anyio\nasync def main():\n{textwrap.indent(rest, '    ')}\nanyio.run(main)\n"
        )
        env = environment(tmp_path)
        with anyio.fail_after(180):  # imports of the SDK, at a load
            await anyio.run_process([sys.executable, "-c", script], env=env, cwd=tmp_path)


def test_the_token_commands_are_those_of_the_program(host: HostProcess, tmp_path: Path) -> None:
    (block,) = [block for block in blocks("sh") if "token create" in block]
    env = environment(tmp_path, API_TOKEN=host.environment["API_TOKEN"], PICOCLAW_URL=host.url)
    made = ""
    for line in block.splitlines():
        command = shlex.split(line, comments=True)
        if "revoke" in command:
            listed = subprocess.run(
                ["picoclaw", "token", "list", "--json"], env=env, check=True, capture_output=True, text=True
            )
            command[-1] = json.loads(listed.stdout)[-1]["id"]
        made += subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout
    assert made.startswith("pico_")


@pytest.mark.slow
@pytest.mark.skipif(NPM is None, reason="needs npm")
def test_claude_code_attaches_by_both_commands_and_calls_the_tools(
    host: HostProcess, model: ModelProcess, token: str, tmp_path: Path
) -> None:
    (claude,) = npm_ci(HERE / "agents").glob("@anthropic-ai/claude-code-linux-*/claude")
    env = environment(
        tmp_path,
        ANTHROPIC_BASE_URL=model.url,
        ANTHROPIC_API_KEY="sk-ant-test",
        CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC="1",
        DISABLE_AUTOUPDATER="1",
        # Offers the tools at once, instead of a search that a scripted model would have to make.
        ENABLE_TOOL_SEARCH="false",
    )

    def run(*arguments: str) -> str:
        return subprocess.run(
            [str(claude), *arguments],
            env=env,
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=90,
            check=True,
        ).stdout

    lines = [block.replace("\\\n", " ") for block in blocks("sh") if "claude mcp add" in block]
    assert len(lines) == 2
    for line, name in zip(lines, ("by_stdio", "by_http"), strict=True):
        arguments = shlex.split(filled(line, host, token))[1:]
        # The name comes first; further on it is the program.
        arguments[arguments.index("picoclaw")] = name
        run(*arguments)
    listed = run("mcp", "list")
    assert listed.count("Connected") == 2, listed
    tools = [f"mcp__{name}__send_message" for name in ("by_stdio", "by_http")]
    calls = [{"name": tool, "input": {"text": "from claude"}} for tool in tools]
    httpx2.post(f"{model.url}/_script", json=[{"tools": calls}, {"text": "got: $results"}], trust_env=False)
    answer = json.loads(run("-p", "greet", "--output-format", "json", "--allowedTools", *tools))
    assert answer["result"].count('"conversation_id":"laptop"') == 2


@pytest.mark.slow
@pytest.mark.skipif(NPM is None, reason="needs npm")
async def test_codex_attaches_by_both_blocks(host: HostProcess, token: str, tmp_path: Path) -> None:
    (codex,) = npm_ci(HERE / "agents").glob("@openai/codex-linux-*/vendor/*/bin/codex")
    first, second = (filled(block, host, token) for block in blocks("toml"))
    (tmp_path / "config.toml").write_text(first + second.replace("servers.picoclaw", "servers.by_http"))
    env = environment(tmp_path, CODEX_HOME=str(tmp_path), PICOCLAW_TOKEN=token)
    asked = [
        {"id": 1, "method": "initialize", "params": {"clientInfo": {"name": "test", "version": "1"}}},
        {"method": "initialized"},
        {"id": 2, "method": "mcpServerStatus/list", "params": {}},
    ]
    async with await anyio.open_process([str(codex), "app-server"], env=env, cwd=tmp_path) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for message in asked:
            await process.stdin.send(json.dumps(message).encode() + b"\n")
        rest = b""
        with anyio.fail_after(60):
            while not re.search(rb'"id":2\b.*\n', rest):
                rest += await process.stdout.receive()
        process.kill()
    (answer,) = [json.loads(line) for line in rest.splitlines() if b'"id":2' in line]
    found = {server["name"]: len(server["tools"]) for server in answer["result"]["data"]}
    assert found == {"picoclaw": 12, "by_http": 12}

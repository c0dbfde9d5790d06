"""Every way in leads through the one door: whoever starts a run, its effects stay in the sandbox."""

from __future__ import annotations

import ast
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.channels.conftest import telegram_host
from tests.fakes.bot_api import BotApi, running_bot_api
from tests.running import HostProcess, directive, frames, running_host, running_model, until

ROOT = Path(__file__).parent.parent.parent
CANARY = "CANARY-ENTRY-7d1f0c"

BOTS: dict[str, BotApi] = {}
"""The Bot API servers of these tests, by address."""

SPAWNERS = {
    "host/sandbox/supervisor.py": "the supervisor",
    "shared/children.py": "the model's client, what tells webhooks, and the tool servers' zygote",
    "shared/processes.py": "the model's client, before there is an event loop",
    "host/schemas/__init__.py": "judges schemas of strangers, with bounds on time and memory",
    "host/cli/__init__.py": "replaces itself by the tool server, before there is a host",
    "host/cli/store.py": "pg_dump and pg_restore, for the operator at the command line",
}
"""The only modules of the host that may start a process, and which."""

SPAWNING = {"subprocess", "multiprocessing", "pty"}
SPAWNING_CALLS = {"fork", "forkpty", "system", "popen", "posix_spawn", "open_process", "run_process", "execv"}


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    root = tmp_path_factory.mktemp("entry")
    (root / "secret.txt").write_text(CANARY)
    settings = {
        "SCHEDULER": "internal",
        "PICOCLAW_HEARTBEAT_ENABLED": "true",
        "ALLOW_REQUEST_STDIO_MCP": "true",
    }
    with running_model() as model, running_bot_api() as api:
        host = telegram_host(root / "host", model.url, api, settings)
        BOTS[api.url] = api
        host.start()
        yield host
        host.stop()


def prying(host: HostProcess) -> str:
    """A message that makes the model reach for the secret through every kind of tool."""
    secret = str(host.root.parent / "secret.txt")
    up = 'D=$(dirname "$(dirname "$PWD")")'
    tools = [
        {"name": "read_file", "input": {"path": secret}},
        {"name": "read_file", "input": {"path": "../../secret.txt"}},
        # Put together by the shell, so that the guard can't know it and the kernel has to refuse.
        {"name": "exec", "input": {"command": f'{up}; cat "$D"/secret.txt; echo tried'}},
        {
            "name": "exec",
            "input": {"command": f'{up}; echo x > "$D"/secret.txt.new; ls -la "$D" /proc/self/fd'},
        },
        {"name": "write_file", "input": {"path": f"{secret}.new", "content": "x"}},
        {"name": "append_file", "input": {"path": secret, "content": "x"}},
        {"name": "edit_file", "input": {"path": secret, "old_text": "C", "new_text": "x"}},
        {"name": "list_dir", "input": {"path": str(host.root.parent)}},
    ]
    return directive(steps=[{"tools": tools}, {"text": "told: $results"}])


def by_chat(client: httpx2.Client, message: str, host: HostProcess) -> str:
    return client.post("/chat", json={"message": message}).text


def by_stream(client: httpx2.Client, message: str, host: HostProcess) -> str:
    body = {"message": message, "stream": True, "show_tool_use": True}
    with client.stream("POST", "/chat", json=body) as response:
        return json.dumps(list(frames(response.iter_lines())))


def by_openai_door(client: httpx2.Client, message: str, host: HostProcess) -> str:
    body = {"model": "picoclaw", "messages": [{"role": "user", "content": message}]}
    return client.post("/v1/chat/completions", json=body).text


def by_main(client: httpx2.Client, message: str, host: HostProcess) -> str:
    return client.post("/chat", json={"message": message, "conversation_id": "main"}).text


def by_subagent(client: httpx2.Client, message: str, host: HostProcess) -> str:
    spawn = {"name": "spawn", "input": {"task": message}}
    asked = directive(steps=[{"tools": [spawn]}, {"text": "it $results"}])
    return client.post("/chat", json={"message": asked}).text


def make_task(client: httpx2.Client, message: str, **fields: Any) -> str:
    task = {"prompt": message, "schedule_type": "interval", "schedule_value": "3600000", **fields}
    made: str = client.post("/task", json=task).json()["id"]
    return made


def by_isolated_task(client: httpx2.Client, message: str, host: HostProcess) -> str:
    return client.post("/task/trigger", json={"task_id": make_task(client, message)}).text


def by_group_task(client: httpx2.Client, message: str, host: HostProcess) -> str:
    conversation = client.post("/chat", json={"message": "hi"}).json()["conversation_id"]
    task = make_task(client, message, context_mode="group", conversation_id=conversation)
    return client.post("/task/trigger", json={"task_id": task}).text


def by_scheduler(client: httpx2.Client, message: str, host: HostProcess) -> str:
    task = make_task(client, message, schedule_type="once", schedule_value="2020-01-01", run_if_past=True)
    until(lambda: client.get(f"/task/{task}").json()["status"] == "completed")
    return client.get(f"/task/{task}/runs").text


def by_heartbeat(client: httpx2.Client, message: str, host: HostProcess) -> str:
    (Path(host.environment["MEMORY_DIR"]) / "HEARTBEAT.md").write_text(message)
    return client.post("/task/trigger", json={"task_id": "task-heartbeat"}).text


def by_program(client: httpx2.Client, message: str, host: HostProcess) -> str:
    """A program that a request brings along pries by itself: it takes no tool of ours for that."""
    workspace = Path(host.environment["MEMORY_DIR"])
    shutil.copy(ROOT / "tests/sandbox/stdio_server.py", workspace / "server.py")
    secret = str(host.root.parent / "secret.txt")
    tools = [
        {"name": "mcp__p__read", "input": {"path": secret}},
        {"name": "mcp__p__write", "input": {"path": f"{secret}.new", "text": "x"}},
        {"name": "mcp__p__run", "input": {"command": f"cat {secret} /proc/*/environ; echo tried"}},
        {
            "name": "mcp__p__run",
            "input": {"command": f"echo x > {secret}; kill -9 {host.process.pid if host.process else 0}"},
        },
    ]
    body = {
        "message": directive(steps=[{"tools": tools}, {"text": "told: $results"}]),
        "mcp_servers": {"p": {"type": "stdio", "command": "python3", "args": ["-I", "server.py"]}},
    }
    return client.post("/chat", json=body).text


def by_telegram(client: httpx2.Client, message: str, host: HostProcess) -> str:
    config = json.loads((host.root / "home" / "config.json").read_text())
    bot = BOTS[config["channels"]["telegram"]["api_base"]]
    bot.say(message, user=7)
    until(lambda: any("told:" in text for text in bot.texts(7)))
    return "\n".join([*bot.texts(7), client.get("/chat/telegram:7/messages").text])


ENTRY_POINTS: dict[str, Callable[[httpx2.Client, str, HostProcess], str]] = {
    "chat": by_chat,
    "stream": by_stream,
    "openai door": by_openai_door,
    "main conversation": by_main,
    "subagent": by_subagent,
    "isolated task": by_isolated_task,
    "group task": by_group_task,
    "internal scheduler": by_scheduler,
    "heartbeat": by_heartbeat,
    "stdio MCP server": by_program,
    "telegram": by_telegram,
}


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_nothing_outside_can_be_reached_by(name: str, host: HostProcess) -> None:
    secret = host.root.parent / "secret.txt"
    with host.client() as client:
        told = ENTRY_POINTS[name](client, prying(host), host)
    assert "told:" in told, told
    assert "tried" in told, "the commands did not run"
    assert CANARY not in told
    assert secret.read_text() == CANARY
    assert not secret.with_name("secret.txt.new").exists()


def test_a_program_of_a_request_is_refused_unless_the_operator_allows_it(tmp_path: Path) -> None:
    body = {"message": "hi", "mcp_servers": {"p": {"type": "stdio", "command": "touch", "args": ["made"]}}}
    with running_model() as model, running_host(tmp_path, model.url, {}) as host, host.client() as client:
        answer = client.post("/chat", json=body)
        assert answer.status_code == 400
        assert "ALLOW_REQUEST_STDIO_MCP" in answer.text
        assert not (Path(host.environment["MEMORY_DIR"]) / "made").exists()


def test_a_persona_file_that_is_a_link_to_a_secret_brings_nothing_in(host: HostProcess) -> None:
    persona = Path(host.environment["MEMORY_DIR"]) / "CLAUDE.md"
    persona.symlink_to(host.root.parent / "secret.txt")
    with host.client() as client:
        assert client.post("/chat", json={"message": "who are you?"}).json()["status"] == "success"
    asked = httpx2.get(f"{host.environment['ANTHROPIC_BASE_URL']}/_requests", trust_env=False).text
    persona.unlink()
    assert CANARY not in asked


def test_only_the_known_modules_of_the_host_start_a_process() -> None:
    found = {
        str(path.relative_to(ROOT))
        for path in (*(ROOT / "host").rglob("*.py"), *(ROOT / "shared").rglob("*.py"))
        if "worker" not in path.parts and _spawns(ast.parse(path.read_text()))
    }
    assert found == set(SPAWNERS)


def _spawns(tree: ast.Module) -> bool:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and SPAWNING & {name.name for name in node.names}:
            return True
        if isinstance(node, ast.ImportFrom) and node.module in SPAWNING:
            return True
        called = node.func if isinstance(node, ast.Call) else None
        asks = called is not None and ast.unparse(called) == "platform.system"
        if isinstance(called, ast.Attribute) and called.attr in SPAWNING_CALLS and not asks:
            return True
    return False

"""Adapters: how to start an agent host, talk to it and read what it kept. Used by ``peers`` and ``torture``.

Another host is one more class, here or in a module of your own: how it is started, how a chat is asked, and
what can be read back. What a host hasn't got raises ``NotThere``. Other hosts are set up as their own manuals
show it, Python's in environments of their own below ``.run/peers``; nothing of theirs is part of this tree.
"""

from __future__ import annotations

import base64
import http.client
import importlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Final
from urllib.parse import urlencode
from uuid import uuid4

from tests.http.conftest import configure
from tests.running import TOKEN, HostProcess, free_port, new_host

ENVIRONMENTS: Final = Path(__file__).parent.parent / ".run" / "peers"
START_S: Final = 120.0
ANSWER_S: Final = 180.0
"""So long a host is waited for: some start a program of their own for each turn, on a busy machine."""
SECRET: Final = "sk-canary-do-not-show"
"""The model's key: no command of an agent may see it."""


class NotThere(Exception):
    """The host has nothing of this kind."""


class DidNotStart(Exception):
    """The host ended, or answers nobody, instead of starting."""


class Refused(Exception):
    """The host answered something else than success."""


UNTOLD: Final = (OSError, ValueError, http.client.HTTPException, Refused)
"""What a caller gets instead of an answer: nothing was acknowledged."""


class AgentHost(ABC):
    """A host that can be started, killed, talked to and asked what it kept."""

    name: ClassVar[str]
    packages: ClassVar[tuple[str, ...]] = ()
    ready: ClassVar[str] = "/health"
    shell: ClassVar[str] = ""
    """The tool that runs a command; empty: it has none."""
    several_users: ClassVar[bool] = True
    """Whether it keeps users apart; else all callers are user 1."""
    secrets: ClassVar[dict[str, str]] = {"the model's key": SECRET}
    """What no command may find, by what it is."""
    process: HostProcess

    def __init__(self, root: Path, model_url: str) -> None:
        self.root = root
        self.model_url = model_url
        root.mkdir(parents=True, exist_ok=True)
        self.process = self.prepared()

    @abstractmethod
    def prepared(self) -> HostProcess:
        """Write what it needs, and return how it is started."""

    @abstractmethod
    def asked(
        self, message: str, conversation: str | None, user: int, stream: bool
    ) -> tuple[str, bytes, str]:
        """Return path, body and content type of a chat."""

    @abstractmethod
    def messages(self, conversation: str, user: int = 0) -> str:
        """Return all that it kept of a conversation, as text; what the user may not see raises Refused."""

    def version(self) -> str:
        """Return what runs."""
        return ", ".join(self.packages) or "this tree"

    def headers(self, user: int) -> dict[str, str]:
        """Return what tells who asks."""
        return {}

    def conversation_of(self, answer: bytes, conversation: str | None) -> str:
        """Return which conversation an answer is of."""
        assert conversation is not None
        return conversation

    def named(self) -> str | None:
        """Return the id of a new conversation, None where the host makes it."""
        return str(uuid4())

    def command(self, line: str) -> dict[str, Any]:
        """Return the call of its tool for a command."""
        if not self.shell:
            raise NotThere("commands")
        return {"name": self.shell, "input": {"command": line}}

    def schedule(self, message: str) -> str:
        """Have a message sent again and again to a conversation of its own; return the task's id."""
        raise NotThere("tasks")

    def trigger(self, task: str) -> None:
        """Run a task now; returns when it ended well."""
        raise NotThere("tasks")

    def task_runs(self, task: str) -> int:
        """Return how many runs of a task it lists that ended well."""
        raise NotThere("list of a task's runs")

    def running(self) -> list[str]:
        """Return what it says is running now, all users'."""
        raise NotThere("list of what runs")

    def start(self) -> float:
        """Start it, and return the seconds until it answers; raises DidNotStart."""
        started = time.monotonic()
        self.process.start(wait=False)
        while time.monotonic() < started + START_S:
            assert self.process.process is not None
            if self.process.process.poll() is not None:
                break
            try:
                if self.call("GET", self.ready)[0] == 200:
                    return time.monotonic() - started
            except OSError:
                time.sleep(0.005)
        self.kill()
        raise DidNotStart(f"{self.name} did not start: {self.process.log_text[-2000:]}")

    def kill(self) -> None:
        """End all its processes at once with SIGKILL."""
        if self.process.process is not None and self.process.process.poll() is None:
            self.process.kill()

    def connect(self) -> http.client.HTTPConnection:
        """Return a connection, open already."""
        connection = http.client.HTTPConnection("127.0.0.1", self.process.port, timeout=ANSWER_S)
        connection.connect()
        return connection

    def chat(
        self,
        message: str,
        conversation: str | None = None,
        user: int = 0,
        connection: http.client.HTTPConnection | None = None,
    ) -> str:
        """Send a message, wait for the answer, and return the conversation."""
        conversation = conversation or self.named()
        path, body, kind = self.asked(message, conversation, user, False)
        status, answer = self.call("POST", path, body, kind, user, connection)
        if status != 200:
            raise Refused(f"{status}: {answer[:300]!r}")
        return self.conversation_of(answer, conversation)

    def first_chunk_s(self, message: str, begins: bytes) -> float:
        """Return the seconds until the text's first piece arrives."""
        path, body, kind = self.asked(message, self.named(), 0, True)
        connection = self.connect()
        started = time.perf_counter()
        connection.request("POST", path, body, {"Content-Type": kind, **self.headers(0)})
        response = connection.getresponse()
        took = 0.0
        while line := response.readline():
            if not took and begins in line:
                took = time.perf_counter() - started
        connection.close()
        if not took:
            raise Refused(f"{self.name} streamed no text")
        return took

    def call(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        kind: str = "application/json",
        user: int = 0,
        connection: http.client.HTTPConnection | None = None,
    ) -> tuple[int, bytes]:
        """Make a request and return status and body."""
        own = connection or self.connect()
        try:
            own.request(method, path, body, {"Content-Type": kind, **self.headers(user)})
            response = own.getresponse()
            return response.status, response.read()
        finally:
            if connection is None:
                own.close()

    def seen(self, path: str, user: int = 0) -> Any:
        """Return what a GET answers; raises Refused."""
        status, body = self.call("GET", path, user=user)
        if status != 200:
            raise Refused(f"{status}: {body[:300]!r}")
        return json.loads(body)

    def environment(self, **more: str) -> dict[str, str]:
        """Return the environment of a peer: the model's address and key, and nothing told to others."""
        silent = {"AGNO_TELEMETRY": "false", "LANGGRAPH_CLI_NO_ANALYTICS": "1", "LANGSMITH_TRACING": "false"}
        key = {"ANTHROPIC_BASE_URL": self.model_url, "ANTHROPIC_API_KEY": SECRET}
        return {"PATH": os.environ["PATH"], "HOME": str(self.root), "TZ": "UTC", **silent, **key, **more}

    def python(self) -> Path:
        """Return the interpreter of the peer's own environment, made now if it is not there."""
        place = ENVIRONMENTS / self.name
        if (place / ".ready").exists():
            return place / "bin" / "python"
        shutil.rmtree(place, ignore_errors=True)
        if shutil.which("uv"):
            _run("uv", "venv", "--quiet", "--python", sys.executable, str(place))
            _run("uv", "pip", "install", "--quiet", "--python", str(place / "bin/python"), *self.packages)
        else:
            _run(sys.executable, "-m", "venv", str(place))
            _run(str(place / "bin/python"), "-m", "pip", "install", "--quiet", *self.packages)
        (place / ".ready").touch()
        return place / "bin" / "python"


def _run(*command: str) -> None:
    subprocess.run(command, check=True)


class PicoClaw(AgentHost):
    """This project's own host. User 0 is the operator, the others are principals with a token each."""

    name = "PicoClaw"
    ready = "/ready"
    shell = "exec"
    secrets: ClassVar = {"the model's key": SECRET, "the host's token": TOKEN}

    def prepared(self) -> HostProcess:
        self._tokens = {0: TOKEN}
        self._making = threading.RLock()
        self.root.chmod(0o755)  # the principals' uids pass through
        settings = {"LOG_LEVEL": "warning", "ANTHROPIC_API_KEY": SECRET, "MAX_CONCURRENT_RUNS": "256"}
        return configure(new_host(self.root, self.model_url, settings), permissions=[])

    def headers(self, user: int) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._token(user)}"}

    def _token(self, user: int) -> str:
        with self._making:
            if user not in self._tokens:
                principal = self._made("/principals", {"name": f"user {user}"})["id"]
                made = self._made(f"/principals/{principal}/tokens", {"name": "torture"})
                self._tokens[user] = made["token"]
            return self._tokens[user]

    def _made(self, path: str, body: dict[str, Any]) -> Any:
        status, answer = self.call("POST", path, json.dumps(body).encode())
        if status not in (200, 201):
            raise Refused(f"{status}: {answer[:300]!r}")
        return json.loads(answer)

    def named(self) -> None:
        return None

    def asked(
        self, message: str, conversation: str | None, user: int, stream: bool
    ) -> tuple[str, bytes, str]:
        body = {"message": message, "stream": stream}
        if conversation is not None:
            body["conversation_id"] = conversation
        return "/chat", json.dumps(body).encode(), "application/json"

    def conversation_of(self, answer: bytes, conversation: str | None) -> str:
        told = json.loads(answer)
        if told["status"] != "success":
            raise Refused(str(told))
        return str(told["conversation_id"])

    def messages(self, conversation: str, user: int = 0) -> str:
        kept = self._all(f"/chat/{conversation}/messages?", "messages", user)
        return "\n".join(message["content"] for message in kept)

    def _all(self, path: str, what: str, user: int = 0) -> list[dict[str, Any]]:
        found, cursor = [], ""
        while cursor is not None:
            page = self.seen(f"{path}&limit=1000&cursor={cursor}", user)
            found += page[what]
            cursor = page["next_cursor"]
        return found

    def schedule(self, message: str) -> str:
        body = {"prompt": message, "schedule_type": "interval", "schedule_value": "86400000"}
        return str(self._made("/task", body)["id"])

    def trigger(self, task: str) -> None:
        told = self._made("/task/trigger", {"task_id": task})
        if told["status"] != "success":
            raise Refused(str(told))

    def task_runs(self, task: str) -> int:
        return sum(run["status"] == "success" for run in self._all(f"/task/{task}/runs?", "runs"))

    def running(self) -> list[str]:
        return [run["run_id"] for run in self._all("/runs?status=running&principal_id=*", "runs")]


class TypeScriptPeer(PicoClaw):
    """breakcafe/picoclaw, built in the directory that PEER_TYPESCRIPT names; who has its token is a user."""

    name = "TypeScript"
    ready = "/health"
    shell = "Bash"
    several_users = False

    def __init__(self, root: Path, model_url: str) -> None:
        if "PEER_TYPESCRIPT" not in os.environ:
            raise SystemExit("PEER_TYPESCRIPT: the directory in which breakcafe/picoclaw was built")
        self.tree = Path(os.environ["PEER_TYPESCRIPT"]).resolve()
        super().__init__(root, model_url)

    def version(self) -> str:
        told = json.loads((self.tree / "package.json").read_text())
        return f"{told['name']} {told['version']}"

    def prepared(self) -> HostProcess:
        places = {"STORE_DIR": "store", "MEMORY_DIR": "memory", "SKILLS_DIR": "skills"}
        environment = self.environment(
            **{setting: str(self.root / place) for setting, place in places.items()},
            LOCAL_DB_PATH=str(self.root / "local" / "messages.db"),
            API_TOKEN=TOKEN,
            LOG_LEVEL="warn",
            NODE_ENV="production",
            PICOCLAW_MCP_SERVER_PATH=str(self.tree / "dist" / "mcp-server.js"),
            CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC="1",
            CLAUDE_CODE_TMPDIR=str(self.root),
            IS_SANDBOX="1",  # as root, the SDK's program refuses to let the agent do all without asking
        )
        return HostProcess(self.root, environment, command=("node", str(self.tree / "dist" / "index.js")))

    def headers(self, user: int) -> dict[str, str]:
        return {"Authorization": f"Bearer {TOKEN}"}

    def messages(self, conversation: str, user: int = 0) -> str:
        kept = self.seen(f"/chat/{conversation}/messages")["messages"]
        return "\n".join(message["content"] for message in kept)

    def task_runs(self, task: str) -> int:
        raise NotThere("list of a task's runs")

    def running(self) -> list[str]:
        kept = self.seen("/chat")["conversations"]
        return [conversation["id"] for conversation in kept if conversation["status"] == "running"]


AGENT_OS: Final = """
from agno.agent import Agent
from agno.db.sqlite import SqliteDb
from agno.models.anthropic import Claude
from agno.os import AgentOS
from agno.tools.shell import ShellTools
import os, uvicorn

agent = Agent(id="agent", model=Claude(id="m"), db=SqliteDb(db_file="agent_os.db"), tools=[ShellTools()],
              add_history_to_context=True, num_history_runs=1000, telemetry=False)
agent_os = AgentOS(agents=[agent], telemetry=False)
uvicorn.run(agent_os.get_app(), port=int(os.environ["PORT"]), log_level="warning", access_log=False)
"""


class AgentOs(AgentHost):
    """agno's AgentOS with its SQLite database and its shell tool, as its quick start shows it."""

    name = "AgentOS"
    packages = ("agno[os]==3.1.10", "anthropic==2.12.0", "sqlalchemy==2.1.9")
    shell = "run_shell_command"

    def prepared(self) -> HostProcess:
        (self.root / "serve.py").write_text(AGENT_OS)
        inside = "import os, runpy, sys; os.chdir(sys.argv[1]); runpy.run_path('serve.py')"
        return HostProcess(
            self.root, self.environment(), command=(str(self.python()), "-c", inside, str(self.root))
        )

    def asked(
        self, message: str, conversation: str | None, user: int, stream: bool
    ) -> tuple[str, bytes, str]:
        form = {"message": message, "stream": str(stream).lower(), "session_id": conversation or ""}
        body = urlencode(form | {"user_id": f"user-{user}"}).encode()
        return "/agents/agent/runs", body, "application/x-www-form-urlencoded"

    def command(self, line: str) -> dict[str, Any]:
        return {"name": self.shell, "input": {"args": ["sh", "-c", line]}}

    def messages(self, conversation: str, user: int = 0) -> str:
        kept = self.seen(f"/sessions/{conversation}/runs?type=agent&user_id=user-{user}", user)
        texts = [
            message.get("content")
            for run in kept
            for message in run.get("messages") or []
            if message.get("role") in ("user", "assistant") and not message.get("from_history")
        ]
        return "\n".join(text for text in texts if isinstance(text, str))


GRAPH: Final = """
from langchain_anthropic import ChatAnthropic
from langgraph.graph import END, START, MessagesState, StateGraph

model = ChatAnthropic(model="m", max_tokens=1000)

async def answer(state: MessagesState):
    return {"messages": [await model.ainvoke(state["messages"])]}

graph = StateGraph(MessagesState).add_node(answer).add_edge(START, "answer").add_edge("answer", END).compile()
"""


class LangGraph(AgentHost):
    """LangGraph's development server with the least graph that answers."""

    name = "LangGraph"
    packages = ("langgraph-cli[inmem]==0.4.40", "langchain-anthropic==1.7.10")
    ready = "/ok"

    def prepared(self) -> HostProcess:
        (self.root / "graph.py").write_text(GRAPH)
        (self.root / "langgraph.json").write_text(
            json.dumps({"dependencies": ["."], "graphs": {"agent": "./graph.py:graph"}})
        )
        port = free_port()
        program = (str(self.python().parent / "langgraph"), "dev", "--no-browser", "--no-reload")
        options = ("--port", str(port), "--n-jobs-per-worker", "64", "--server-log-level", "ERROR")
        inside = "import os, sys; os.chdir(sys.argv[1]); os.execv(sys.argv[2], sys.argv[2:])"
        command = (sys.executable, "-c", inside, str(self.root), *program, *options)
        return HostProcess(self.root, self.environment(), port=port, command=command)

    def asked(
        self, message: str, conversation: str | None, user: int, stream: bool
    ) -> tuple[str, bytes, str]:
        body = {
            "assistant_id": "agent",
            "input": {"messages": [{"role": "user", "content": message}]},
            "if_not_exists": "create",
            "stream_mode": "messages-tuple",
        }
        path = f"/threads/{conversation}/runs/{'stream' if stream else 'wait'}"
        return path, json.dumps(body).encode(), "application/json"

    def messages(self, conversation: str, user: int = 0) -> str:
        kept = self.seen(f"/threads/{conversation}/state")["values"].get("messages", [])
        return "\n".join(str(message["content"]) for message in kept)


class Nanobot(AgentHost):
    """nanobot's OpenAI-compatible server; what it kept is read from its files, as its API lists nothing."""

    name = "nanobot"
    packages = ("nanobot-ai==0.3.5", "aiohttp==3.14.5")

    def prepared(self) -> HostProcess:
        config = {
            "agents": {
                "defaults": {"workspace": str(self.root / "workspace"), "model": "m", "provider": "anthropic"}
            },
            "providers": {"anthropic": {"apiKey": SECRET, "apiBase": self.model_url}},
        }
        path = self.root / "config.json"
        path.write_text(json.dumps(config))
        port = free_port()
        program = str(self.python().parent / "nanobot")
        command = (program, "serve", "--config", str(path), "--port", str(port))
        return HostProcess(self.root, self.environment(), port=port, command=command)

    def asked(
        self, message: str, conversation: str | None, user: int, stream: bool
    ) -> tuple[str, bytes, str]:
        body = {
            "messages": [{"role": "user", "content": message}],
            "session_id": conversation,
            "stream": stream,
        }
        return "/v1/chat/completions", json.dumps(body).encode(), "application/json"

    def messages(self, conversation: str, user: int = 0) -> str:
        name = base64.urlsafe_b64encode(f"api:{conversation}".encode()).decode().rstrip("=")
        kept = (self.root / "sessions").rglob(f"{name}.jsonl")
        return "\n".join(path.read_text(errors="replace") for path in kept)


PEERS: Final = (PicoClaw, AgentOs, LangGraph, Nanobot)


def adapter(name: str) -> type[AgentHost]:
    """Return the adapter of that name or at ``module:Class``; exits with a sentence if there is none."""
    module, _, inside = name.partition(":")
    if inside:
        found: type[AgentHost] = getattr(importlib.import_module(module), inside)
        return found
    for kind in (*PEERS, TypeScriptPeer):
        if kind.name == name:
            return kind
    known = ", ".join(kind.name for kind in (*PEERS, TypeScriptPeer))
    raise SystemExit(f"there is no adapter {name}; there are {known}, and your own as module:Class")

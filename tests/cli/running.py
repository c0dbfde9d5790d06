"""Programs of the command line as real processes, and a small server that speaks the HTTP contract."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from subprocess import PIPE
from typing import Any
from unittest.mock import patch

from typer.testing import CliRunner

from host.cli import make_app
from tests.warm_host import Warm, warm

TOKEN = "token-for-the-test-0123456789"


def environment(home: Path, **extra: str) -> dict[str, str]:
    """An environment of the test's own: nothing of the machine's settings reaches the program."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    return {**kept, "HOME": str(home), "PICOCLAW_HOME": str(home), "COLUMNS": "160", **extra}


def picoclaw(
    home: Path, *arguments: str, stdin: str | bytes = "", **extra: str
) -> subprocess.CompletedProcess[str]:
    """Run a command in this process, which saves the start of one, in an environment of its own."""
    with patch.dict(os.environ, environment(home, **extra), clear=True), warm():
        time.tzset()
        ended = CliRunner().invoke(make_app(arguments[0]), arguments, input=stdin)
    time.tzset()
    if ended.exception is not None and not isinstance(ended.exception, SystemExit):
        raise ended.exception
    return subprocess.CompletedProcess(arguments, ended.exit_code, ended.stdout, ended.stderr)


def process(home: Path, *arguments: str, stdin: str = "", **extra: str) -> subprocess.CompletedProcess[str]:
    """Run a command as the process that it is for a person."""
    command = [sys.executable, "-m", "host.cli", *arguments]
    with Warm(
        command, stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True, env=environment(home, **extra)
    ) as started:
        said, complained = started.communicate(stdin, timeout=60)
    return subprocess.CompletedProcess(command, started.returncode, said, complained)


@dataclass
class ContractServer:
    """Answers with what a test prepared: JSON, or a stream of events; keeps the requests it got."""

    answers: dict[tuple[str, str], tuple[int, Any]] = field(default_factory=dict)
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    requests: list[tuple[str, str, Any]] = field(default_factory=list)
    cancelled: threading.Event = field(default_factory=threading.Event)
    url: str = ""


@contextmanager
def contract_server() -> Iterator[ContractServer]:
    state = ContractServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *arguments: object) -> None:
            return

        def handle_any(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            body = json.loads(self.rfile.read(length)) if length else None
            state.requests.append((self.command, self.path, body))
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self.send_json(401, {"error": "Unauthorized", "code": "unauthorized"})
            elif self.path.endswith("/events") or (
                self.command == "POST" and self.path in ("/chat", "/chat/conv-1/resume") and state.events
            ):
                self.send_events()
            else:
                nothing = (404, {"error": "Not found", "code": "not_found"})
                status, answer = state.answers.get((self.command, self.path), nothing)
                if self.path.endswith("/cancel"):
                    state.cancelled.set()
                self.send_json(status, answer)

        def __getattr__(self, name: str) -> Any:
            if name in ("do_GET", "do_POST", "do_PUT", "do_DELETE"):
                return self.handle_any
            raise AttributeError(name)

        def send_json(self, status: int, answer: Any) -> None:
            content = b"" if answer is None else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def send_events(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(b"retry: 2000\n\n")
            for number, (name, data) in enumerate(state.events, 1):
                if name == "wait for cancel":
                    self.wfile.write(b": awake\n\n")
                    self.wfile.flush()
                    assert state.cancelled.wait(60)
                    continue
                self.wfile.write(f"id: {number}\nevent: {name}\ndata: {json.dumps(data)}\n\n".encode())
                self.wfile.flush()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def api_of_keys(statuses: Mapping[str, int]) -> Iterator[str]:
    """Serve POST /v1/messages: each key has a status, what is no key gets 401; yield the address."""
    message = {
        "id": "msg_1", "type": "message", "role": "assistant", "model": "m", "stop_reason": "end_turn",
        "content": [{"type": "text", "text": "yes"}], "usage": {"input_tokens": 1, "output_tokens": 1},
    }  # fmt: skip

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *arguments: object) -> None:
            return

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            status = statuses.get(self.headers.get("X-Api-Key", ""), 401)
            error = {"type": "error", "error": {"type": "an_error", "message": "no"}}
            content = json.dumps(message if status == 200 else error).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

"""Real processes for tests: a fake model server, and hosts to be talked to, stopped and killed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, ClassVar, Final, Self

import httpx2
import psutil

from tests.warm_host import Warm

TOKEN: Final = "test-token-0123456789"
START_S: Final = 60.0
STOP_S: Final = 60.0
SERVE: Final = (sys.executable, "-m", "host.cli", "serve")

WITHOUT_TLS: Final = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""For clients of plain HTTP: it trusts nobody. The certificates of a usual one take each client 20 ms."""

Frame = tuple[int, str, dict[str, Any]]
"""An event as a client reads it: id, name, data."""


@dataclass(slots=True)
class ModelProcess:
    """The fake model server as a process of its own."""

    url: str
    process: subprocess.Popen[str]

    def requests(self) -> list[dict[str, Any]]:
        """Return what it was asked."""
        return list(self._asked()["requests"])

    def refusals(self) -> list[str]:
        """Return why it refused requests that the API would refuse too."""
        return list(self._asked()["refusals"])

    def script(self, *steps: Mapping[str, Any]) -> None:
        """Have it take these steps next."""
        with plain_client() as client:
            client.post(f"{self.url}/_script", json=steps).raise_for_status()

    def forget(self) -> None:
        """Have it forget what it was asked, and its script."""
        with plain_client() as client:
            client.delete(f"{self.url}/_requests").raise_for_status()

    def _asked(self) -> dict[str, Any]:
        with plain_client() as client:
            asked: dict[str, Any] = client.get(f"{self.url}/_requests").json()
            return asked


@contextlib.contextmanager
def running_model(*options: str) -> Iterator[ModelProcess]:
    """Serve the fake model while the block runs; what it was asked has to be what the API would take."""
    process = _popen()(
        [sys.executable, "-m", "tests.fakes.model_server", "--port", "0", *options],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    with process.stdout:
        model = ModelProcess(json.loads(process.stdout.readline())["url"], process)
        try:
            yield model
            assert model.refusals() == [], "the host sent what the Messages API refuses"
        finally:
            process.terminate()
            process.wait(60)


def _popen() -> type[subprocess.Popen[Any]]:
    """A benchmark measures processes as people start them."""
    return Warm if "pytest" in sys.modules else subprocess.Popen


@dataclass(slots=True)
class HostProcess:
    """A host under test, on directories that survive it."""

    allowed: ClassVar[bool] = True
    root: Path
    environment: dict[str, str]
    port: int = 0
    command: tuple[str, ...] = SERVE
    process: subprocess.Popen[bytes] | None = None
    log: IO[bytes] | None = None
    children: list[psutil.Process] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def log_text(self) -> str:
        """Everything it has logged."""
        return (self.root / "host.log").read_text(errors="replace")

    def start(self, *, wait: bool = True) -> Self:
        """Start it; by default return when it is ready."""
        assert self.allowed, (
            "a quick run starts no host: mark the test, or name the fixture in tests/conftest.py"
        )
        self.port = self.port or free_port()
        with (self.root / "host.log").open("ab") as log:
            self.process = self._start({**self.environment, "PORT": str(self.port)}, log)
        if wait:
            self.wait_ready()
        return self

    def _start(self, environment: dict[str, str], log: IO[bytes]) -> subprocess.Popen[bytes]:
        start = _popen() if self.command == SERVE else subprocess.Popen
        return start(
            self.command,
            env=environment,
            cwd=Path(__file__).parent.parent,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )

    def wait_ready(self) -> None:
        """Return when /ready answers 200."""
        deadline = time.monotonic() + START_S
        while True:
            with contextlib.suppress(httpx2.TransportError), self.client(None) as client:
                if client.get("/ready").status_code == 200:
                    return
            assert self.process is not None
            assert self.process.poll() is None, f"the host ended: {self.log_text[-3000:]}"
            assert time.monotonic() < deadline, f"the host is not ready: {self.log_text[-3000:]}"
            time.sleep(0.02)

    def listens(self) -> bool:
        """Return whether its port is open."""
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def tree(self) -> list[psutil.Process]:
        """Return the host's process and all below it."""
        assert self.process is not None
        with contextlib.suppress(psutil.NoSuchProcess):
            top = psutil.Process(self.process.pid)
            return [top, *top.children(recursive=True)]
        return []

    def names(self) -> list[str]:
        """Return the names of the processes of the tree; who leaves meanwhile is passed over."""
        names = []
        for process in self.tree():
            with contextlib.suppress(psutil.NoSuchProcess):
                names.append(process.name())
        return names

    def signal_all(self, number: signal.Signals) -> None:
        """Signal the whole tree; who leaves meanwhile is passed over."""
        for process in self.tree():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def kill(self) -> None:
        """Kill -9 the whole tree at once."""
        self.signal_all(signal.SIGKILL)
        self._wait()

    def stop(self) -> int:
        """End it with SIGTERM and return its exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self._wait()

    def _wait(self) -> int:
        assert self.process is not None
        try:
            return self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(60)
            raise

    def client(self, token: str | None = TOKEN, **options: Any) -> httpx2.Client:
        """Return a client with the token."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        return plain_client(base_url=self.url, headers=headers, timeout=60, **options)


def plain_client(**options: Any) -> httpx2.Client:
    """Return a client for plain HTTP on this machine."""
    return httpx2.Client(verify=WITHOUT_TLS, trust_env=False, **{"timeout": 60, **options})


def free_port() -> int:
    """Return a port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def database_of(root: Path) -> dict[str, str]:
    """Return the settings of the engine under test: hosts with the same files have the same database."""
    if os.environ.get("PICOCLAW_TEST_ENGINE") != "postgres":
        return {}
    from tests.postgres import database_named

    return {"DATABASE_URL": database_named(f"h_{hashlib.sha256(str(root).encode()).hexdigest()[:24]}")}


def new_host(root: Path, model_url: str | None, settings: Mapping[str, str] | None = None) -> HostProcess:
    """Return a host, not yet started, with all its files below ``root``."""
    root.mkdir(parents=True, exist_ok=True)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(root),
        "PICOCLAW_HOME": str(root / "home"),
        "STORE_DIR": str(root / "store"),
        "MEMORY_DIR": str(root / "memory"),
        "LOCAL_DB_PATH": str(root / "local" / "picoclaw.db"),
        "HOST": "127.0.0.1",
        "API_TOKEN": TOKEN,
        "TZ": "UTC",
        # Tests say themselves when what is due runs.
        "SCHEDULER": "external",
        "LOG_LEVEL": "info",
        "STOP_GRACE_MS": "3000",
        **(
            {}
            if model_url is None
            else {"ANTHROPIC_BASE_URL": model_url, "ANTHROPIC_API_KEY": "sk-test-canary"}
        ),
        **database_of(root),
        **(settings or {}),
    }
    return HostProcess(root, environment)


@contextlib.contextmanager
def running_host(
    root: Path, model_url: str | None, settings: Mapping[str, str] | None = None
) -> Iterator[HostProcess]:
    """Run a host while the block runs."""
    host = new_host(root, model_url, settings)
    try:
        yield host.start()
    finally:
        if host.process is not None:
            host.stop()


def directive(words: str = "", /, **step: Any) -> str:
    """Return a message that tells the fake model what to do."""
    return f"{words} @@model {json.dumps(step)}"


def frames(lines: Iterator[str]) -> Iterator[Frame]:
    """Read server-sent events from a response's lines."""
    current: dict[str, str] = {}
    for line in lines:
        if line.startswith((":", "retry:")):
            continue
        if line:
            name, _, value = line.partition(": ")
            current[name] = value
        elif current:
            yield int(current["id"]), current["event"], json.loads(current["data"])
            current = {}


def stream(client: httpx2.Client, body: dict[str, Any]) -> Iterator[Frame]:
    """POST /chat with ``stream`` and read the events to the end."""
    with client.stream("POST", "/chat", json={**body, "stream": True}) as response:
        assert response.status_code == 200, response.read()
        yield from frames(response.iter_lines())


def until(condition: Callable[[], object], within_s: float = 60.0) -> None:
    """Wait for an outside process, bounded."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"it did not happen in {within_s} s"
        time.sleep(0.01)

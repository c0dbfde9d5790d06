"""The documented receivers of webhooks, run against a host: they verify with the published packages."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from socket import create_connection

import pytest

from tests.docs.pages import ROOT
from tests.http.conftest import configure
from tests.mcp.programs import NPM, npm_ci
from tests.running import HostProcess, free_port, new_host, until

CLIENTS = ROOT / "examples/clients"
NODE_PACKAGES = Path(__file__).parent / "node"
SECRET = "whsec_" + "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    root = tmp_path_factory.mktemp("host")
    process = configure(new_host(root, None), webhooks={"allowed_hosts": ["127.0.0.1"]})
    process.start()
    yield process
    process.stop()


@contextmanager
def running(command: list[str], log: Path) -> Iterator[int]:
    port = free_port()
    environment = {"WEBHOOK_SECRET": SECRET, "PATH": "/usr/bin:/bin"}
    with log.open("wb") as output:
        process = subprocess.Popen([*command, str(port)], env=environment, stdout=output, stderr=output)
    try:
        until(lambda: listens(port) or process.poll() is not None)
        yield port
    finally:
        process.kill()
        process.wait()


def listens(port: int) -> bool:
    try:
        with closing(create_connection(("127.0.0.1", port), timeout=1)):
            return True
    except OSError:
        return False


def program(name: str, folder: Path) -> list[str]:
    if name.endswith(".py"):
        return [sys.executable, str(CLIENTS / name)]
    if NPM is None:
        pytest.skip("needs npm")
    (folder / "node_modules").symlink_to(npm_ci(NODE_PACKAGES))
    shutil.copy(CLIENTS / name, folder)
    return [str(shutil.which("node")), str(folder / name)]


@pytest.mark.parametrize("name", ["receiver.py", "receiver.mjs"])
def test_a_documented_receiver_tells_how_a_run_ended(host: HostProcess, name: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with running(program(name, tmp_path), log) as port, host.client() as client:
        hook = {"url": f"http://127.0.0.1:{port}/", "secret": SECRET}
        run_id = client.post("/chat", json={"message": "hello", "webhook": hook}).json()["run_id"]
        until(lambda: f"run.ended {run_id} success" in log.read_text())
        wrong = {**hook, "secret": "whsec_" + "A" * 32}
        lost = client.post("/chat", json={"message": "hello", "webhook": wrong}).json()
        assert lost["status"] == "success"
        assert log.read_text().count("run.ended") == 1

"""A host that is still opening: what comes waits in its socket, and a signal ends the opening."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from tests.http.conftest import MakeHost
from tests.running import HostProcess, until

HELD = """
import os, sys, time

class Held:
    def find_spec(self, name, path, target=None):
        while name == "host.app" and not os.path.exists(os.environ["GO_ON"]):
            time.sleep(0.01)

sys.meta_path.insert(0, Held())
"""


@pytest.fixture
def go_on(tmp_path: Path) -> Path:
    return tmp_path / "go-on"


@pytest.fixture
def loading(make_host: MakeHost, tmp_path: Path, go_on: Path) -> HostProcess:
    """Give a host that has not loaded its program before ``go_on`` is there."""
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "sitecustomize.py").write_text(HELD)
    held = {"PYTHONPATH": str(tmp_path / "held"), "GO_ON": str(go_on)}
    return make_host(settings=held).start(wait=False)


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Give the address of a database server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"postgresql://host:secret@127.0.0.1:{server.getsockname()[1]}/picoclaw"


def test_what_comes_while_the_host_opens_waits_and_is_answered(loading: HostProcess, go_on: Path) -> None:
    with loading.client() as client, ThreadPoolExecutor() as threads:
        until(loading.listens)
        message = threads.submit(client.post, "/chat", json={"message": "early"})
        health = threads.submit(client.get, "/health")
        nowhere = threads.submit(client.get, "/no/such/path")
        ready = threads.submit(client.get, "/ready")
        assert not health.done()
        go_on.touch()
        assert message.result().json()["result"] == "echo: early"
        body = health.result().json()
        assert (body["status"], body["channels"]) == ("ok", {"telegram": "off"})
        assert nowhere.result().status_code == 404
        assert ready.result().status_code == 200


def test_a_signal_ends_an_opening_and_who_waits_sees_the_connection_close(
    make_host: MakeHost, silent_server: str
) -> None:
    opening = make_host(settings={"DATABASE_URL": silent_server}).start(wait=False)
    assert opening.process is not None
    with opening.client() as client, ThreadPoolExecutor() as threads:
        until(opening.listens)
        listing = threads.submit(client.get, "/chat")
        until(lambda: len(opening.tree()) > 1)
        opening.process.terminate()
        assert opening.process.wait(60) == 0
        with pytest.raises(httpx2.TransportError):
            listing.result()
    assert "Stopping" in opening.log_text
    assert "Listening" not in opening.log_text
    assert "Traceback" not in opening.log_text

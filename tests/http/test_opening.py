"""A host that is still opening: what needs its base alone is answered, the rest waits and is not refused."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.http.conftest import MakeHost
from tests.running import TOKEN, HostProcess, until

HELD = """
import os, sys, time

class Held:
    def find_spec(self, name, path, target=None):
        while name == "host.routes" and not os.path.exists(os.environ["GO_ON"]):
            time.sleep(0.01)

sys.meta_path.insert(0, Held())
"""


@pytest.fixture
def go_on(tmp_path: Path) -> Path:
    return tmp_path / "go-on"


@pytest.fixture
def opening(make_host: MakeHost, tmp_path: Path, go_on: Path) -> HostProcess:
    """Give a host that has not loaded its routes before ``go_on`` is there."""
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "sitecustomize.py").write_text(HELD)
    held = {"PYTHONPATH": str(tmp_path / "held"), "GO_ON": str(go_on)}
    return make_host(settings=held).start(wait=False)


def test_health_is_answered_and_a_message_waits(opening: HostProcess, go_on: Path) -> None:
    with opening.client() as client, ThreadPoolExecutor() as threads:
        until(opening.listens)
        health = client.get("/health")
        assert health.status_code == 200
        body = health.json()
        assert (body["status"], body["database"]) == ("ok", {"ok": True, "conversations": 1, "tasks": 0})
        assert body["channels"] == {"telegram": "off"}
        not_ready = client.get("/ready")
        assert (not_ready.status_code, not_ready.json()["code"]) == (503, "not_ready")
        message = threads.submit(client.post, "/chat", json={"message": "early"})
        nowhere = threads.submit(client.get, "/no/such/path")
        assert client.get("/chat", headers={"Authorization": f"Bearer {TOKEN}x"}).status_code == 401
        assert not message.done()
        go_on.touch()
        assert message.result().json()["result"] == "echo: early"
        assert nowhere.result().status_code == 404
        until(lambda: client.get("/ready").status_code == 200)


def test_what_waits_is_answered_before_a_host_ends_that_is_stopped_meanwhile(
    opening: HostProcess, go_on: Path
) -> None:
    with opening.client() as client, ThreadPoolExecutor() as threads:
        until(opening.listens)
        assert client.get("/health").status_code == 200
        listing = threads.submit(client.get, "/chat")
        assert opening.process is not None
        opening.process.terminate()
        until(lambda: "Stopping" in opening.log_text)
        go_on.touch()
        assert listing.result().status_code == 200
        assert opening.process.wait(60) == 0

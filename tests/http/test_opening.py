"""A host that is still opening: what comes waits in its socket, and a signal ends the opening."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from tests.http.conftest import MakeHost
from tests.running import HostProcess, directive, until

HELD = """
import os, sys, time

class Held:
    def find_spec(self, name, path, target=None):
        while name == os.environ["HELD"] and not os.path.exists(os.environ["GO_ON"]):
            print("held", flush=True)
            time.sleep(0.01)

sys.meta_path.insert(0, Held())
"""


@pytest.fixture
def go_on(tmp_path: Path) -> Path:
    return tmp_path / "go-on"


@pytest.fixture
def loading(make_host: MakeHost, tmp_path: Path, go_on: Path) -> HostProcess:
    """Give a host that has not loaded its program before ``go_on`` is there."""
    return make_host(settings=held(tmp_path, "host.app", go_on)).start(wait=False)


def held(tmp_path: Path, module: str, go_on: Path) -> dict[str, str]:
    """Return the environment of a host that does not import the module before ``go_on`` is there."""
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "sitecustomize.py").write_text(HELD)
    return {"PYTHONPATH": str(tmp_path / "held"), "HELD": module, "GO_ON": str(go_on)}


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Give the address of a database server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"postgresql://host:secret@127.0.0.1:{server.getsockname()[1]}/picoclaw"


def hears(process: subprocess.Popen[bytes] | None, number: signal.Signals) -> bool:
    """Return whether a process has a handler of its own for a signal (proc_pid_status(5))."""
    assert process is not None
    status = Path(f"/proc/{process.pid}/status").read_text()
    return bool(int(re.findall(r"SigCgt:\s*(\w+)", status)[0], 16) >> (number - 1) & 1)


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
        until(lambda: hears(opening.process, signal.SIGTERM))
        opening.process.terminate()
        assert opening.process.wait(60) == 0
        with pytest.raises(httpx2.TransportError):
            listing.result()
    assert "Stopping" in opening.log_text
    assert "Listening" not in opening.log_text
    assert "Traceback" not in opening.log_text


def test_ctrl_c_while_the_program_is_loaded_ends_it_without_a_word(
    make_host: MakeHost, tmp_path: Path, go_on: Path
) -> None:
    loading = make_host(settings=held(tmp_path, "uvicorn.config", go_on)).start(wait=False)
    until(lambda: "held" in loading.log_text)
    assert loading.process is not None
    loading.process.send_signal(signal.SIGINT)
    assert loading.process.wait(60) == 130
    assert loading.log_text.replace("held\n", "") == ""


def test_a_signal_from_the_terminal_reaches_the_host_alone(make_host: MakeHost) -> None:
    host = make_host().start()
    assert host.process is not None
    with host.client() as client:
        client.post(
            "/chat", json={"message": directive(tools=[{"name": "exec", "input": {"command": "true"}}])}
        )
    main, *children = host.tree()
    assert len(children) > 2
    assert all(os.getpgid(child.pid) != os.getpgid(main.pid) for child in children)


@pytest.mark.parametrize(
    ("home", "store", "level"),
    [("absent", "store", "info"), ("used", "store", "info"), ("empty", "store", "warning"),
     ("used", "mounted", "warning"), ("absent", "../elsewhere", "warning")],
)  # fmt: skip
def test_a_new_store_is_a_warning_where_a_volume_may_be_missing(
    make_host: MakeHost, tmp_path: Path, home: str, store: str, level: str
) -> None:
    place = tmp_path / home
    if home != "absent":
        place.mkdir()
    if home == "used":
        (place / "config.json").write_text("{}")
        (place / "mounted").mkdir()
    settings = {"PICOCLAW_HOME": str(place), "STORE_DIR": os.path.normpath(place / store)}
    host = make_host(settings=settings).start()
    with host.client() as client:
        known = client.get("/health").json()["store"]["id"]
    host.stop()
    host.start()
    (said,) = [line for line in map(json.loads, host.log_text.splitlines()) if known in line["message"]]
    assert said["level"] == level


def test_nothing_that_a_host_makes_is_everybody_s_to_write(make_host: MakeHost, tmp_path: Path) -> None:
    host = make_host()
    host.command = ("bash", "-c", f"umask 0; exec {' '.join(host.command)}")
    host.start()
    with host.client() as client:
        assert client.put("/chat/main/files/made/a.txt", content=b"x").status_code == 201
        wrote = {"name": "write_file", "input": {"path": "by/b.txt", "content": "x"}}
        ran = {"name": "exec", "input": {"command": "mkdir c && touch c/c.txt"}}
        client.post("/chat", json={"message": directive(tools=[wrote, ran]), "conversation_id": "main"})
    made = [path for path in tmp_path.rglob("*") if not path.is_symlink()]
    assert {"a.txt", "b.txt", "c.txt", "store.json"} <= {path.name for path in made}
    assert [path for path in made if path.stat().st_mode & 0o002] == []

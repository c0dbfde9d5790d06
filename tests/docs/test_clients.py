"""The clients in examples/, run against a host, and against one that breaks the connection."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from tests.docs.pages import ROOT
from tests.running import TOKEN, HostProcess, running_host

CLIENTS = ROOT / "examples/clients"
NODE = shutil.which("node")
PROGRAMS = [
    pytest.param([sys.executable, str(CLIENTS / "chat.py")], id="python"),
    pytest.param(
        [str(NODE), str(CLIENTS / "chat.mjs")],
        id="javascript",
        marks=pytest.mark.skipif(NODE is None, reason="needs node"),
    ),
]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    with running_host(tmp_path_factory.mktemp("host"), None) as process:
        yield process


def say(program: list[str], url: str, token: str = TOKEN) -> subprocess.CompletedProcess[str]:
    environment = {"PICOCLAW_URL": url, "API_TOKEN": token, "PATH": "/usr/bin:/bin"}
    return subprocess.run(
        [*program, "what did I say?"], env=environment, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_client_shows_the_answer_and_how_the_run_ended(host: HostProcess, program: list[str]) -> None:
    done = say(program, host.url)
    assert done.stdout.startswith("[offline model] I was shown nothing"), done.stderr
    assert done.stdout.endswith("\n[success]\n")


def test_a_client_reads_an_answer_as_data(host: HostProcess) -> None:
    done = say([sys.executable, str(CLIENTS / "typed.py")], host.url)
    assert done.stdout == " (0 files)\n", done.stderr


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_client_goes_on_where_the_connection_broke(host: HostProcess, program: list[str]) -> None:
    with breaking_once(host.port) as port:
        done = say(program, f"http://127.0.0.1:{port}")
    assert done.stdout.count("[offline model] I was shown nothing") == 1, done.stderr
    assert done.stdout.endswith("\n[success]\n")


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_client_says_why_it_was_refused(host: HostProcess, program: list[str]) -> None:
    done = say(program, host.url, "wrong")
    assert done.returncode == 1
    assert '"code":"unauthorized"' in done.stderr


@contextmanager
def breaking_once(port: int) -> Iterator[int]:
    """Stand in front of a host: the first connection breaks once the run has begun."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        threading.Thread(target=_serve, args=(server, port), daemon=True).start()
        yield server.getsockname()[1]


def _serve(server: socket.socket, port: int) -> None:
    broken = False
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        with connection, socket.create_connection(("127.0.0.1", port)) as behind:
            threading.Thread(target=_pass_on, args=(connection, behind), daemon=True).start()
            while piece := behind.recv(65536):
                connection.sendall(piece)
                if not broken and b"event: start" in piece:
                    broken = True
                    connection.shutdown(socket.SHUT_RDWR)
                    break


def _pass_on(connection: socket.socket, behind: socket.socket) -> None:
    try:
        while piece := connection.recv(65536):
            behind.sendall(piece)
    except OSError:
        return

"""The command line against the host itself."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.cli.running import environment, process
from tests.only_root import only_root


class Dev:
    """``picoclaw dev`` as a newcomer runs it, in a directory of its own."""

    def __init__(self, directory: Path, **extra: str) -> None:
        self.directory = directory
        self.shown = ""
        environ = environment(directory, PORT="0", **extra)
        del environ["PICOCLAW_HOME"]
        self.program = subprocess.Popen(
            [sys.executable, "-m", "host.cli", "dev"],
            cwd=directory,
            env=environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def wait_for(self, text: str) -> None:
        assert self.program.stdout is not None
        end = time.monotonic() + 60
        while text not in self.shown:
            ready, _, _ = select.select([self.program.stdout], [], [], max(0, end - time.monotonic()))
            piece = os.read(self.program.stdout.fileno(), 65536) if ready else b""
            assert piece, self.shown
            self.shown += piece.decode()

    def stop(self) -> int:
        if self.program.poll() is None:
            self.program.send_signal(signal.SIGINT)
        code = self.program.wait(60)
        assert self.program.stdout is not None
        self.program.stdout.close()
        return code


@contextlib.contextmanager
def running_dev(directory: Path, **extra: str) -> Iterator[Dev]:
    """A host that is ready, and gone at the end."""
    running = Dev(directory, **extra)
    try:
        running.wait_for("Ctrl-C stops it.")
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    with running_dev(tmp_path_factory.mktemp("dev")) as running:
        yield running


def test_a_newcomer_pastes_both_lines_and_sees_something_happen(dev: Dev) -> None:
    home = dev.directory / ".run"
    assert (home / "dev.json").stat().st_mode & 0o777 == 0o600
    said = process(home, "chat", stdin="remember that my cat is called Miso\n")
    assert (said.returncode, said.stderr) == (0, "")
    assert "MEMORY.md" in said.stdout
    assert "Miso" in (home / "workspace/MEMORY.md").read_text()
    pasted = re.search(r"curl .*? -d '.*?'", dev.shown, re.S)
    assert pasted is not None
    answer = subprocess.run(pasted[0], shell=True, capture_output=True, text=True, timeout=60, check=True)
    assert '"status":"success"' in answer.stdout


def test_the_console_is_on_and_its_token_is_told_apart_from_its_address(dev: Dev) -> None:
    address = re.search(r"In a browser: +(\S+)\n +Its token: +(\S+)", dev.shown)
    assert address is not None, dev.shown
    assert address[2] not in address[1]
    page = subprocess.run(["curl", "-sf", address[1]], capture_output=True, text=True, timeout=60, check=True)
    assert "<title>PicoClaw</title>" in page.stdout


def test_tasks_are_managed_from_the_command_line(dev: Dev) -> None:
    home = dev.directory / ".run"
    made = process(home, "tasks", "add", "say hi", "--every", "15m", "--id", "hourly")
    assert "Added hourly; next run " in made.stdout, made.stderr
    assert "every 15m" in process(home, "tasks", "list").stdout
    assert "hourly is paused; next run -." in process(home, "tasks", "pause", "hourly").stdout
    assert "hourly is active" in process(home, "tasks", "resume", "hourly").stdout
    assert process(home, "tasks", "run", "hourly").returncode == 0
    assert "success" in process(home, "tasks", "log", "hourly").stdout
    assert process(home, "tasks", "rm", "hourly").stdout == "Deleted hourly.\n"
    assert process(home, "tasks", "list").stdout == "No tasks.\n"


@only_root
def test_no_child_inherits_a_secret(tmp_path: Path) -> None:
    names = (
        "API_TOKEN",
        "CLAUDE_CODE_OAUTH_TOKEN",
        "PICOCLAW_KEY_PASSPHRASE",
        "PICOCLAW_CHANNELS_TELEGRAM_TOKEN",
    )
    secrets = dict.fromkeys(names, "canary-0123456789")
    with running_dev(tmp_path, **secrets, ANTHROPIC_BASE_URL="http://127.0.0.1:1") as running:
        children = psutil.Process(running.program.pid).children(recursive=True)
        assert children
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                assert "canary" not in str(child.environ()) + str(child.cmdline())


def test_the_host_leaves_no_core_file(dev: Dev) -> None:
    limits = Path(f"/proc/{dev.program.pid}/limits").read_text()
    assert re.search(r"^Max core file size +0 +0 ", limits, re.M)


def test_stopping_is_clean_and_takes_the_address_away(tmp_path: Path) -> None:
    with running_dev(tmp_path) as running:
        assert running.stop() == 0
    assert not (tmp_path / ".run/dev.json").exists()
    assert "Traceback" not in running.shown

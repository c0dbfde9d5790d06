"""docs/tutorial.md, done as it stands there: a first message, then a task that reports by webhook."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, page_text
from tests.running import HostProcess, free_port, until

TEXT = page_text("tutorial.md")
WEBHOOK = TEXT.partition("## 4a.")[2].partition("## 4b.")[0]
CURLS = [
    block.replace("\\\n", " ").strip()
    for block in re.findall(r"```console\n(.*?)```", TEXT, re.S)
    if block.startswith("curl")
]


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", WEBHOOK, re.S)
    assert found is not None
    return found[1]


class Folder:
    """A host by ``picoclaw dev`` with a home of its own, and what a person types beside it."""

    def __init__(self, directory: Path) -> None:
        self.home = directory / "run"
        self.home.mkdir()
        self.site = directory / "site"
        self.port = free_port()
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(directory),
            "PICOCLAW_HOME": str(self.home),
            "PORT": str(self.port),
            "API_TOKEN": "the-token-of-the-tutorial",
            "TOKEN": "the-token-of-the-tutorial",
            "PYTHONPATH": str(self.site),
        }
        command = (sys.executable, "-m", "host.cli", "dev")
        self.host = HostProcess(directory, environment, self.port, command)

    def type(self, line: str) -> str:
        for said, meant in (
            ("localhost:9000", f"localhost:{self.port}"),
            (".venv/bin/picoclaw", f"{sys.executable} -m host.cli"),
        ):
            line = line.replace(said, meant)
        done = subprocess.run(
            ["bash", "-c", line],
            env=self.host.environment | {"PORT": str(self.port)},
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, (line, done.stdout, done.stderr)
        return done.stdout


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    made = Folder(tmp_path)
    yield made
    if made.host.process is not None:
        made.host.kill()


@contextmanager
def receiver(port: int, out: Path) -> Iterator[None]:
    program = ROOT / "examples/channels/webhook/receiver.py"
    with out.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, str(program), str(port)], stdout=file, stderr=subprocess.DEVNULL
        )
    try:
        yield
    finally:
        process.kill()
        process.wait()


def test_the_first_message_and_the_first_task_work_as_the_tutorial_says(folder: Folder) -> None:
    folder.host.start()
    assert '"status":"success"' in folder.type(CURLS[0])
    assert (folder.home / "workspace/notes.txt").read_text().strip() == "hello"
    folder.type('.venv/bin/picoclaw tasks add "run date" --every 1m')
    task = re.findall(r"task-[\w-]{36}", folder.type(".venv/bin/picoclaw tasks list --json"))[0]
    folder.type(f".venv/bin/picoclaw tasks run {task}")
    assert "success" in folder.type(f".venv/bin/picoclaw tasks log {task}")


def test_the_task_says_its_result_by_webhook_as_the_tutorial_says(folder: Folder, tmp_path: Path) -> None:
    install = next(line for line in WEBHOOK.splitlines() if "-m pip install" in line)
    folder.type(
        install.replace(".venv/bin/python", sys.executable)
        + f" -q --no-index --no-deps --target {folder.site}"
    )
    port = free_port()
    (folder.home / "config.json").write_text(block("json").replace("8800", str(port)))
    (folder.home / ".security.yml").write_text(block("yaml"))
    (folder.home / ".security.yml").chmod(0o600)
    out = tmp_path / "received"
    with receiver(port, out):
        folder.host.start()
        until(lambda: '"webhook":"ok"' in folder.type(f"curl -s localhost:{folder.port}/health"))
        folder.type(CURLS[1])
        until(lambda: "task-" in out.read_text())
        task = re.findall(r"task-[\w-]{36}", folder.type(".venv/bin/picoclaw tasks list --json"))[0]
        folder.type(f".venv/bin/picoclaw tasks run {task}")
        until(lambda: re.search(r"\d\d:\d\d:\d\d", out.read_text()))
        folder.type(f".venv/bin/picoclaw tasks rm {task}")

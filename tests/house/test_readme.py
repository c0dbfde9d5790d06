"""What the README promises to a newcomer, done as it stands there: make run, then its curl lines."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.running import free_port

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text()
LINES = [
    line.replace("\\\n", " ")
    for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL)
    for line in re.findall(r"^curl (?:.*\\\n)*.*$", block, re.MULTILINE)
]


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The output of ``make run`` up to its last line of greeting, and the port it is on."""
    port = str(free_port())
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": os.environ.get("HOME", "/"),
        "PORT": port,
        "PICOCLAW_HOME": str(tmp_path_factory.mktemp("run")),
    }
    process = subprocess.Popen(
        ["make", "--no-print-directory", "run"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if "Ctrl-C" in line:
            break
    yield said, port
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=60)


def run(command: str, environment: dict[str, str]) -> str:
    done = subprocess.run(
        ["bash", "-c", command], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def token_in(said: str) -> str:
    found = re.search(r"Bearer ([\w-]+)", said)
    assert found is not None, said
    return found[1]


@pytest.mark.processes
def test_make_run_prints_two_lines_to_paste_and_both_work(started: tuple[str, str]) -> None:
    said, _ = started
    pasted = re.search(r"^ +(curl (?:.*\\\n)*.*)$", said, re.MULTILINE)
    assert pasted is not None, said
    answer = json.loads(run(pasted[1], dict(os.environ)))
    assert answer["status"] == "success"
    assert "[offline model]" in answer["result"]
    assert ".venv/bin/picoclaw chat" in said


@pytest.mark.processes
@pytest.mark.parametrize("line", LINES, ids=lambda line: re.sub(r"\W+", "-", line)[:40])
def test_the_curl_lines_of_the_readme_work(started: tuple[str, str], line: str) -> None:
    said, port = started
    command = line.replace("localhost:9000", f"localhost:{port}")
    out = run(command, {**os.environ, "TOKEN": token_in(said)})
    if "-sN" in line:
        assert "event: done" in out
        return
    answer: dict[str, Any] = json.loads(out.splitlines()[-1])
    assert "error" not in answer, answer


def test_every_page_the_docs_point_to_is_there() -> None:
    for page in [ROOT / "README.md", *ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} points to {target}"


@pytest.mark.parametrize("start", ["README.md", "docs/index.md"])
def test_a_newcomer_finds_every_page(start: str) -> None:
    text = (ROOT / start).read_text()
    assert [page.name for page in ROOT.glob("docs/*.md") if f"{page.name})" not in text] == ["index.md"]


def test_what_the_map_and_the_claims_name_is_there_and_nothing_is_left_out() -> None:
    contributing = (ROOT / "CONTRIBUTING.md").read_text()
    packages = [path.parent.name for path in ROOT.glob("host/*/__init__.py")]
    assert [name for name in packages if f"`{name}/`" not in contributing] == []
    named = re.findall(r"`(tests/[\w./]+)`", (ROOT / "SECURITY.md").read_text())
    assert [place for place in named if not (ROOT / place).exists()] == []
    assert len(named) > 20


def test_every_page_of_the_console_is_described() -> None:
    titles = re.findall(r'title: "(\w+)", icon', (ROOT / "host/console/places.js").read_text())
    described = (ROOT / "docs/console.md").read_text()
    assert [title for title in titles if f"| {title} |" not in described] == []
    assert len(titles) > 5

"""Channels of other packages: the documented example is installed as anybody would, and talked to."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.channels.conftest import MakeHost
from tests.http.conftest import configure
from tests.running import HostProcess, ModelProcess, directive, new_host, until

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "channels" / "mailbox"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that the example was installed into by pip, without a network."""
    target = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-index",
        "--no-deps",
        "--no-build-isolation",
    ]
    done = subprocess.run([*command, "--target", str(target), str(EXAMPLE)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


def with_plugin(root: Path, model: ModelProcess, path: Path | None, **settings: Any) -> HostProcess:
    environment = {} if path is None else {"PYTHONPATH": str(path)}
    host = new_host(root, model.url, environment)
    plugin = {"enabled": True, "allow_from": ["ann", "mailbox:bob"], **settings}
    return configure(host, channels={"plugins": {"mailbox": plugin}})


def logged(host: HostProcess, said: str) -> bool:
    return said in host.log_text


def post(box: Path, chat: str, name: str, text: str) -> None:
    folder = box / "in" / chat
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.part").write_text(text)
    (folder / f"{name}.part").rename(folder / f"{name}.txt")


def read(box: Path, chat: str) -> list[str]:
    file = box / "out" / f"{chat}.txt"
    return [part.strip() for part in file.read_text().split("---\n")[:-1]] if file.exists() else []


def test_the_example_is_as_short_as_it_is_said_to_be() -> None:
    assert len((EXAMPLE / "picoclaw_mailbox.py").read_text().splitlines()) <= 65


@pytest.mark.processes
def test_the_installed_example_brings_messages_and_carries_answers(
    tmp_path: Path, model: ModelProcess, installed: Path
) -> None:
    box = tmp_path / "box"
    post(box, "ann", "1", "hello")
    post(box, "mallory", "1", "let me in")
    host = with_plugin(tmp_path / "host", model, installed, options={"directory": str(box), "every_s": 0.05})
    try:
        host.start()
        until(lambda: read(box, "ann") == ["echo: hello"])
        post(box, "bob", "1", "/new")
        post(box, "bob", "2", "hi")
        until(lambda: len(read(box, "bob")) == 2)
        assert read(box, "bob")[1] == "echo: hi"
        assert read(box, "mallory") == []
        with host.client() as client:
            assert client.get("/health").json()["channels"] == {"telegram": "off", "mailbox": "ok"}
            assert client.get("/chat/mailbox:bob.2").status_code == 200
        post(box, "ann", "2", "after a restart")
        host.kill()
        host.start()
        until(lambda: read(box, "ann") == ["echo: hello", "echo: after a restart"])
    finally:
        host.kill()


PAGER = """
from host.channels.base import Undeliverable
from picoclaw_mailbox import Mailbox

class Pager(Mailbox):
    longest = 700
    has_buttons = True

    async def send(self, chat_id, text, reply_to):
        if len(text) > self.longest:
            raise Undeliverable(f"{len(text)} is too long")
        return await super().send(chat_id, text, reply_to)

    async def ask(self, chat_id, text, buttons):
        labels = " ".join(f"<{each.label}>" for row in buttons for each in row)
        await self.send(chat_id, labels, None)
        return await self.send(chat_id, text, None)
"""


@pytest.mark.processes
def test_nothing_is_longer_than_a_channel_takes_be_it_a_request_or_a_files_caption(
    tmp_path: Path, model: ModelProcess, installed: Path
) -> None:
    box, site = tmp_path / "box", tmp_path / "site"
    (site / "pager-1.dist-info").mkdir(parents=True)
    (site / "pager.py").write_text(PAGER)
    (site / "pager-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: pager\nVersion: 1\n")
    (site / "pager-1.dist-info" / "entry_points.txt").write_text(
        "[picoclaw.channels]\nmailbox = pager:Pager\n"
    )
    (site / "picoclaw_mailbox.py").symlink_to(installed / "picoclaw_mailbox.py")
    options = {"directory": str(box), "every_s": 0.05}
    plugin = {"enabled": True, "allow_from": ["ann"], "owners": ["ann"], "options": options}
    host = configure(
        new_host(tmp_path / "host", model.url, {"PYTHONPATH": str(site)}),
        channels={"plugins": {"mailbox": plugin}},
        permissions=[{"tool": "append_file", "do": "ask"}],
    )
    name = f"{'n' * 240}.txt"
    file = {"name": "write_file", "input": {"path": name, "content": "x"}}
    sent = {"name": "send_file", "input": {"path": name, "caption": "c" * 500}}
    gated = {"name": "append_file", "input": {"path": "gated.txt", "content": "x" * 1000}}
    try:
        host.start()
        post(box, "ann", "1", directive(steps=[{"tools": [file]}, {"tools": [sent]}, {"tools": [gated]}]))
        until(lambda: any("May I do this?" in each for each in read(box, "ann")))
        told = read(box, "ann")
        assert "files can't be sent here" in " ".join(told)
        assert "<Deny>" in told
        assert "too long to be shown here whole" in told[-1]
    finally:
        host.kill()


@pytest.mark.processes
def test_a_channel_that_is_not_installed_or_not_configured_warns_and_stops_nothing(
    tmp_path: Path, model: ModelProcess, installed: Path
) -> None:
    for name, path, said in (
        ("absent", None, "no installed package offers a channel named mailbox"),
        ("bare", installed, "channels.plugins.mailbox.options.directory is not set"),
    ):
        host = with_plugin(tmp_path / name, model, path)
        try:
            host.start()
            until(partial(logged, host, said))
            with host.client() as client:
                assert client.get("/health").json()["channels"]["mailbox"] == "retrying"
        finally:
            host.kill()


def test_without_a_channel_nothing_of_one_is_loaded(make_host: MakeHost) -> None:
    with make_host(enabled=False).start().client() as client:
        assert client.get("/health").json()["channels"] == {"telegram": "off"}
    loaded = "sorted(name for name in sys.modules if name.startswith(('telegram', 'host.channels.')))"
    script = f"import host.app, sys; print({loaded})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['host.channels.base', 'host.channels.webhook']"

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from host.cli import make_app
from tests.cli.running import environment, picoclaw

NOT_FOR_JSON = {"dev", "serve", "supervise"}
JSON_ANYWAY = {"tasks check", "store export"}


def commands(command: Any, *path: str) -> dict[str, Any]:
    if not hasattr(command, "commands"):
        return {" ".join(path): command}
    return {
        name: each
        for key, one in command.commands.items()
        for name, each in commands(one, *path, key).items()
    }


def test_every_command_that_tells_something_can_tell_it_as_json() -> None:
    without = {
        name
        for name, command in commands(get_command(make_app())).items()
        if not any("--json" in option.opts for option in command.params)
    }
    assert without == NOT_FOR_JSON | JSON_ANYWAY


@pytest.mark.parametrize(
    "command", ["store check", "store compact", "sandbox explain", "secrets list", "init"]
)
def test_what_is_wrong_with_the_settings_is_a_sentence_each_and_a_code(tmp_path: Path, command: str) -> None:
    (tmp_path / ".security.yml").write_text("- no mapping")
    (tmp_path / ".security.yml").chmod(0o600)
    ended = picoclaw(tmp_path, *command.split(), PORT="many", LOG_FORMAT="loud")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert all(line.startswith("picoclaw: ") for line in ended.stderr.splitlines())


def test_a_reader_that_has_enough_is_no_fault(tmp_path: Path) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    ended = subprocess.run(
        [sys.executable, "-m", "host.cli", "doctor", "--json"],
        stdout=theirs, stderr=subprocess.PIPE, text=True, timeout=60, check=False, env=environment(tmp_path),
    )  # fmt: skip
    os.close(theirs)
    assert (ended.returncode, ended.stderr) == (1, "")

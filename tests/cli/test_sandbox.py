"""``picoclaw sandbox explain`` asks the sandbox itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.running import picoclaw


@pytest.fixture
def home(tmp_path: Path) -> Path:
    picoclaw(tmp_path, "init")
    (tmp_path / "workspace/notes.txt").write_text("notes")
    return tmp_path


def explained(home: Path, subject: str, **extra: str) -> dict[str, tuple[bool, str]]:
    done = picoclaw(home, "sandbox", "explain", subject, "--json", **extra)
    assert done.returncode == 0, done.stderr
    return {row["what"]: (row["allowed"], row["why"]) for row in json.loads(done.stdout)}


def test_the_workspace_may_be_read_and_written_and_stays_as_it_is(home: Path) -> None:
    for subject in (".", "notes.txt", "./new.txt"):
        found = explained(home, subject)
        assert found["sandbox"][0]
        assert found["write"][0], found
    assert explained(home, "notes.txt")["file tools read"] == (True, "allowed")
    assert (home / "workspace/notes.txt").read_text() == "notes"
    assert sorted(path.name for path in (home / "workspace").iterdir()) == ["CLAUDE.md", "notes.txt"]


@pytest.mark.parametrize("name", ["store", ".security.yml", "config.json"])
def test_what_the_host_keeps_is_closed(home: Path, name: str) -> None:
    found = explained(home, str(home / name))
    assert [found[what][0] for what in ("file tools read", "commands read", "write")] == [False] * 3


def test_system_files_may_be_read_by_commands_and_not_written(home: Path) -> None:
    found = explained(home, "/usr/bin")
    assert found["commands read"][0]
    assert not found["write"][0]


def test_an_allowed_path_opens(home: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    for parent in (other, other.parent):
        parent.chmod(0o755)
    assert not explained(home, str(other))["file tools read"][0]
    opened = explained(home, str(other), PICOCLAW_TOOLS_ALLOW_READ_PATHS=str(other))
    assert opened["file tools read"][0]
    assert not opened["write"][0]


def test_commands_are_judged_and_not_run(home: Path) -> None:
    assert explained(home, "touch ran")["run"][0]
    assert not (home / "workspace/ran").exists()
    refused = explained(home, "rm -rf /")
    assert refused["run"] == (False, "Command blocked by safety guard (dangerous pattern detected)")
    assert refused["network"] == (False, "tools.exec.allow_network is false")
    off = explained(home, "ls", PICOCLAW_TOOLS_EXEC_ENABLED="off")
    assert off["run"] == (False, "tools.exec.enabled is false")


def test_whatever_a_path_is_called_it_is_tried_and_not_run(home: Path) -> None:
    for name in ("my notes.txt", "$(touch${IFS}ran)"):
        (home / "workspace" / name).write_text("notes")
        assert explained(home, name)["commands read"][0]
    for subject in ("~;touch${IFS}ran", "~/$(touch${IFS}ran)", "~x;touch${IFS}ran"):
        explained(home, subject)
    assert explained(home, "~")["commands read"][0]
    assert not (home / "workspace/ran").exists()


def test_a_home_without_a_workspace_is_a_sentence(tmp_path: Path) -> None:
    done = picoclaw(tmp_path, "sandbox", "explain", ".")
    assert done.returncode == 1
    assert "picoclaw init" in done.stderr

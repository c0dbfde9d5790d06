"""What the policy means, in sentences."""

from __future__ import annotations

from pathlib import Path

import pytest

from host.sandbox import SandboxPolicy, SandboxReport, explain, explain_command, explain_path
from host.sandbox.worker import config
from host.sandbox.worker.confine import grants

WORKSPACE = Path("/srv/memory")
POLICY = SandboxPolicy(
    workspace=WORKSPACE,
    secret_paths=(Path("/srv/store"),),
    read_paths=("/mnt/*/logs",),
    write_paths=("/srv/out",),
)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("notes.md", "read and write, inside the workspace"),
        ("../other", "closed, outside the workspace"),
        ("/srv/store/db", "stays secret in every mode"),
        ("/srv/out/x", "by tools.allow_write_paths"),
        ("/mnt/a/logs/x", "read only, by tools.allow_read_paths"),
        ("/mnt/a/b/logs", "closed"),
        ("/dev/null", "safe for all tools"),
        ("/usr/bin/env", "part of the system"),
        ("~/.ssh/id_rsa", "closed"),
    ],
)
def test_a_path_is_explained(path: str, says: str) -> None:
    assert says in explain_path(POLICY, path)


def test_secrets_stay_closed_when_everything_else_is_open() -> None:
    policy = SandboxPolicy(
        workspace=WORKSPACE, restrict_to_workspace=False, secret_paths=(Path("/srv/store"),)
    )
    assert "restrict_to_workspace is off" in explain_path(policy, "/srv/other")
    assert "secret" in explain_path(policy, "/srv/store/db")


def test_a_command_is_explained() -> None:
    report = SandboxReport(2)
    assert "without network" in explain_command(POLICY, report, "ls")
    assert "destructive" in explain_command(POLICY, report, "rm -rf /")
    assert "outside" in explain_command(POLICY, report, "cat /root/x")
    assert "level 1" in explain_command(POLICY, SandboxReport(1, missing=("files",)), "ls")
    off = SandboxPolicy(workspace=WORKSPACE, exec_enabled=False)
    assert "switched off" in explain_command(off, report, "ls")


def test_the_explanation_knows_the_same_system_directories_as_the_rules() -> None:
    assert explain.SYSTEM == grants.SYSTEM
    assert explain.SAFE_DEVICES == config.DEVICES

"""What /health says of the sandbox, before and after its self-test."""

from __future__ import annotations

from pathlib import Path

import pytest

from host.http.health import _shown
from host.sandbox.client import Sandbox
from host.sandbox.policy import SEEN, SandboxPolicy, SandboxReport


async def test_a_sandbox_that_is_still_being_tried_has_not_failed(tmp_path: Path) -> None:
    assert _shown(Sandbox(SandboxPolicy(workspace=tmp_path)).report) == {"state": "testing"}


@pytest.mark.parametrize("level", [0, 2, 3])
def test_once_it_was_tried_its_level_counts(level: int) -> None:
    shown = _shown(SandboxReport(level, landlock_abi=6, layers={"own_uid": True}))
    found = {"state": "tested", "level": level, "landlock_abi": 6, "own_uid": True}
    assert shown == {
        **found,
        "isolation": "uid" if level else "none",
        "visible": [*SEEN] if level == 2 else [],
    }


def test_principals_of_one_uid_are_apart_by_namespaces_alone() -> None:
    assert SandboxReport(3, no_uids="the host is not root").isolation.level == "uid"
    weak = SandboxReport(2, no_uids="the host is not root").isolation
    assert weak.level == "weak"
    assert "the host is not root" in weak.reason

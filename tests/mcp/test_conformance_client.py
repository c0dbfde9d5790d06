"""The conformance suite against the host's client: every scenario passes, and the docs name them all."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.mcp.over_http import HANDSHAKE, STATELESS
from tests.mcp.programs import HERE, NPM, node, npm_ci

pytestmark = [pytest.mark.slow, pytest.mark.skipif(NPM is None, reason="needs npm")]

DOCS: Final = HERE.parent.parent / "docs" / "mcp.md"
PASSED: Final = {"2025-03-26": 2, HANDSHAKE: 19, STATELESS: 33}


@pytest.mark.parametrize("version", PASSED)
def test_the_client_passes_every_scenario(version: str, tmp_path: Path) -> None:
    npm_ci(HERE / "node")
    program = str(HERE / "node" / "node_modules" / ".bin" / "conformance")
    # One at a time: the suite begins all of them at once.
    module = f"{sys.executable} -m tests.mcp.conformance_client"
    client = f"flock {tmp_path} env PYTHONPATH={HERE.parent.parent} {module}"
    command = [node(), program, "client", "--command", client, "--suite", "all", "--timeout", "600000"]
    options = ["--spec-version", version, "--output-dir", str(tmp_path)]
    ended = subprocess.run([*command, *options], check=False, timeout=900, capture_output=True, text=True)
    passed = set(re.findall(r"^✓ (\S+):", ended.stdout, re.MULTILINE))
    failed = set(re.findall(r"^✗ (\S+):", ended.stdout, re.MULTILINE))
    assert not failed, ended.stdout[-4000:]
    assert len(passed) >= PASSED[version]
    text = DOCS.read_text()
    for name in passed:
        assert f"`{name}`" in text, name

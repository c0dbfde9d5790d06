"""The conformance suite against the host's client: every scenario passes but those that the docs name."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.mcp.over_http import HANDSHAKE, STATELESS
from tests.mcp.programs import HERE, NPM, node, npm_ci

pytestmark = [pytest.mark.slow, pytest.mark.skipif(NPM is None, reason="npm is not installed")]

DOCS: Final = HERE.parent.parent / "docs" / "mcp.md"
PASSED: Final = {"2025-03-26": 2, HANDSHAKE: 17, STATELESS: 32}
FAILING: Final = {
    "elicitation-sep1034-client-defaults",
    "json-schema-2020-12-preservation",
}


@pytest.mark.parametrize("version", PASSED)
def test_the_client_passes_every_scenario_but_those_that_the_docs_name(version: str, tmp_path: Path) -> None:
    npm_ci(HERE / "node")
    program = str(HERE / "node" / "node_modules" / ".bin" / "conformance")
    client = f"env PYTHONPATH={HERE.parent.parent} {sys.executable} -m tests.mcp.conformance_client"
    command = [node(), program, "client", "--command", client, "--suite", "all", "--timeout", "100000"]
    options = ["--spec-version", version, "--output-dir", str(tmp_path)]
    ended = subprocess.run([*command, *options], check=False, timeout=300, capture_output=True, text=True)
    passed = set(re.findall(r"^✓ (\S+):", ended.stdout, re.MULTILINE))
    failed = set(re.findall(r"^✗ (\S+):", ended.stdout, re.MULTILINE))
    assert failed <= FAILING, ended.stdout[-4000:]
    assert len(passed) >= PASSED[version]
    text = DOCS.read_text()
    for name in passed | failed:
        assert f"`{name}`" in text, name

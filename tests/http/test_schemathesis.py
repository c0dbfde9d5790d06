"""A program that nobody here wrote makes requests from the OpenAPI document, good and bad ones."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.http.conftest import MakeHost, configure
from tests.running import TOKEN

ROOT = Path(__file__).parents[2]
EXAMPLES = 2
"""Random ones for each operation; the systematic ones beside them are some thousands. They are counted, so
that a fast machine asks what a slow one does.
"""
WITHIN_S = 900
"""For a machine that does other things beside."""


@pytest.mark.slow
def test_requests_made_from_the_document_are_answered_as_it_says(make_host: MakeHost) -> None:
    host = configure(make_host(), rate_limits={"failed_auth_per_minute": 0}).start()
    command = [
        str(Path(sys.executable).with_name("st")),
        f"--config-file={Path(__file__).with_name('schemathesis.toml')}",
        "run",
        f"{host.url}/openapi.json",
        f"--header=Authorization: Bearer {TOKEN}",
        # It would end the host.
        "--exclude-path=/control/stop",
        "--phases=examples,coverage,fuzzing",
        f"--max-examples={EXAMPLES}",
        "--request-timeout=30",
        "--generation-deterministic",
        "--suppress-health-check=all",
    ]
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(host.root),
        "PYTHONPATH": str(ROOT),
        "SCHEMATHESIS_HOOKS": "tests.http.schemathesis_hooks",
    }
    ended = subprocess.run(
        command, env=environment, cwd=host.root, capture_output=True, text=True, timeout=WITHIN_S
    )
    assert ended.returncode == 0, ended.stdout[-20_000:] + ended.stderr[-2000:]
    assert '"status":500' not in host.log_text

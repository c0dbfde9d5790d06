"""The way of a message through the host stays one that somebody can follow in an afternoon."""

from __future__ import annotations

import pytest

from benchmarks.path import measured

MOST = {
    "plain": {"files": 54, "functions": 255, "redactions": 9},
    "with a command": {"files": 62, "functions": 332, "redactions": 21},
}
"""These figures only get smaller, but for what a capability needs on the way (users and approvals: 26; after
a command, what it changed: 13)."""


@pytest.mark.processes
def test_a_message_passes_few_files_functions_and_redactions() -> None:
    for name, passed in measured().items():
        found = {
            "files": len(passed.files),
            "functions": len(passed.functions),
            "redactions": passed.redactions,
        }
        assert {what: n for what, n in found.items() if n > MOST[name][what]} == {}, (name, passed.files)

"""The way of a message through the host stays one that somebody can follow in an afternoon."""

from __future__ import annotations

from benchmarks.path import measured

MOST = {
    "plain": {"files": 55, "functions": 259, "redactions": 15},
    "with a command": {"files": 64, "functions": 330, "redactions": 33},
}
"""These figures only get smaller."""


def test_a_message_passes_few_files_functions_and_redactions() -> None:
    for name, passed in measured().items():
        found = {
            "files": len(passed.files),
            "functions": len(passed.functions),
            "redactions": passed.redactions,
        }
        assert {what: n for what, n in found.items() if n > MOST[name][what]} == {}, (name, passed.files)

"""Calls that fail in the same way are told apart by their results, in a time that grows with their length."""

from __future__ import annotations

import pytest

from host.agent.loop import TOLD_AFTER, Progress
from host.ports import ToolResult


@pytest.mark.parametrize(
    "result", ["took 1.5 s", "took 120ms", "1" * 500_000, "1.1" * 200_000, "1 " * 200_000]
)
def test_a_failing_result_is_compared_without_its_times_however_long_it_is(result: str) -> None:
    progress = Progress(lambda name: False)
    call = {"id": "a", "name": "exec", "input": {}}
    for number in range(TOLD_AFTER - 1):
        told = result.replace("1.5", f"{number}.25").replace("120", f"{number}")
        assert progress.notes([call], {"a": ToolResult(told, is_error=True)}) == {}
    assert f"{TOLD_AFTER} times" in progress.notes([call], {"a": ToolResult(result, is_error=True)})["a"]

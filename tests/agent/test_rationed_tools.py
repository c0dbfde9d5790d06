"""Tools of other servers beyond their share of the window: named, and brought when they are wanted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from host.agent.own_tools import RationedTools
from host.agent.toolbox import Toolbox
from host.ports import ToolResult, Toolset, ToolSpec
from shared.redact import Redactor

pytestmark = pytest.mark.anyio
SHAPE = {"type": "object", "additionalProperties": False}


class Many:
    """A server with many tools, each with much to say."""

    def __init__(self, count: int) -> None:
        said = "[from a server] It does a thing. " + "And more of it. " * 20
        self.specs: Sequence[ToolSpec] = [
            ToolSpec(f"tool_{number:03}", said, SHAPE) for number in range(count)
        ]

    async def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        return ToolResult(name)


async def none() -> Sequence[Toolset]:
    return ()


def offered(count: int, window: int) -> tuple[RationedTools, list[str]]:
    rationed = RationedTools(Toolbox((), Redactor(())), window, none)
    rationed.offer([Many(count)])
    return rationed, rationed.specs[0].description.splitlines()[1:] if rationed.specs else []


async def test_what_has_no_room_in_the_list_is_counted_once() -> None:
    _, lines = offered(300, 8000)
    named = [line for line in lines if line.startswith("tool_")]
    assert 0 < len(named) < 300
    assert lines == [*named, f"and {300 - len(named)} more, to be found by words"]


async def test_where_there_is_room_for_all_names_all_are_there() -> None:
    _, lines = offered(20, 8000)
    assert lines == [f"tool_{number:03}: It does a thing." for number in range(20)]


async def test_words_that_fit_nothing_are_a_fault_and_a_name_beyond_the_list_is_found() -> None:
    rationed, _ = offered(300, 8000)
    assert (await rationed.call("find_tools", {"query": "zebra"})).is_error
    found = await rationed.call("find_tools", {"query": "tool_299"})
    assert (found.is_error, "tool_299" in found.text) == (False, True)

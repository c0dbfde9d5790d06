"""Tools that the calling program carries out itself. No call of them runs: its result is what comes back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from host.ports import ToolResult, ToolSpec
from shared.untrusted import defused

PREFIX: Final = "client__"
"""Before the names that the model sees, so that none of them can hide a tool of the host."""


@dataclass(frozen=True, slots=True)
class ClientTool:
    """A tool as the calling program describes it; ``input_schema`` is that of an object."""

    name: str
    description: str
    input_schema: Mapping[str, Any]


class ClientTools:
    """Implements ``host.ports.Toolset``."""

    def __init__(self, tools: Sequence[ClientTool]) -> None:
        self.specs = [
            ToolSpec(
                PREFIX + tool.name,
                defused(tool.description),
                tool.input_schema,
                delegable=False,
                read_only=True,
                asks="client_tool",
                title=tool.name,
            )
            for tool in tools
        ]

    async def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        """Say that the program can't be asked from here."""
        return ToolResult("The program that has this tool can't be asked here.", is_error=True)

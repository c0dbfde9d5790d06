"""A tool for agents: dice. Options: ``sides``, 6 unless said."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

from host.ports import ToolResult, ToolSpec


class Dice:
    """What the entry point names: a class (or function) that is called with the tool's options."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._sides = int(options.get("sides", 6))
        schema = {"type": "object", "properties": {}, "additionalProperties": False}
        self.specs = [ToolSpec("roll_dice", f"Roll a die with {self._sides} sides.", schema, read_only=True)]

    async def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        """Return a result, or one with ``is_error`` that says what would be right."""
        return ToolResult(str(1 + secrets.randbelow(self._sides)))

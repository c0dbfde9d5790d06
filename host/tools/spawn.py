"""The tool that hands a task to a subagent: an agent loop of its own, inside the run that asked for it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import cache
from typing import Any, Final

from pydantic import Field, ValidationError

from host.tools.base import ToolResult, ToolSpec, refused
from shared.tool_contract import Arguments

SPAWN: Final = "spawn"
LONGEST_TASK: Final = 64_000
"""Characters of a task."""


class Task(Arguments):
    """The tool's arguments."""

    task: str = Field(
        min_length=1,
        max_length=LONGEST_TASK,
        description="What to do and what to answer. The subagent knows nothing of this conversation, "
        "so say everything it needs",
    )
    tools: list[str] | None = Field(
        None, max_length=100, description="Names of the tools it may use; all of yours if left out"
    )
    max_iterations: int | None = Field(
        None, ge=1, le=1000, description="Model calls it may make; never more than you may"
    )


class Spawn:
    """Implements ``host.tools.base.Toolset`` with the one tool."""

    def __init__(self, run: Callable[[Task], Awaitable[ToolResult]]) -> None:
        self._run = run

    def specs(self) -> Sequence[ToolSpec]:
        """Return the one tool."""
        return _specs()

    async def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        """Run the task to its end."""
        try:
            task = Task.model_validate(arguments)
        except ValidationError as error:
            return refused(error)
        if not task.task.strip():
            return ToolResult("task: must not be blank", is_error=True)
        return await self._run(task)


@cache
def _specs() -> tuple[ToolSpec, ...]:
    return (
        ToolSpec(
            SPAWN,
            "Hand a task to a subagent that works on its own, in the same workspace, and returns its final "
            "answer. Call it several times in one reply to work on independent parts side by side.",
            Task.model_json_schema(),
        ),
    )

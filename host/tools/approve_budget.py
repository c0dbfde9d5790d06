"""The main conversation's yes: it lets another conversation, which paused at a budget, go on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import cache
from typing import Any, Final

from pydantic import Field, ValidationError

from host.ports import ToolResult, ToolSpec
from host.tools.arguments import refused
from shared.errors import PicoError
from shared.tool_contract import Arguments

NAME: Final = "approve_budget"

Approve = Callable[[str, int], Awaitable[str]]
"""Lets a paused conversation use so many tokens more; returns the id of the run that goes on."""


class Approval(Arguments):
    """The tool's arguments."""

    conversation_id: str = Field(min_length=1, max_length=200, description="The conversation that paused")
    allow_tokens: int = Field(gt=0, le=2**53, description="Tokens it may use, whatever the budgets say")


class Approvals:
    """Implements ``host.ports.Toolset``, for runs that a person started in the main conversation."""

    def __init__(self, approve: Approve) -> None:
        self._approve = approve
        self.specs = _specs()

    async def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        """Resume the conversation; its run goes on by itself."""
        try:
            approval = Approval.model_validate(arguments)
            run_id = await self._approve(approval.conversation_id, approval.allow_tokens)
        except ValidationError as error:
            return refused(error)
        except PicoError as error:
            return ToolResult(error.message, is_error=True)
        return ToolResult(f"Conversation {approval.conversation_id} goes on as {run_id}.")


@cache
def _specs() -> tuple[ToolSpec, ...]:
    return (
        ToolSpec(
            NAME,
            "Let a conversation that paused at a budget go on. Only when a person has just asked for it "
            "in this conversation, naming how many tokens it may use.",
            Approval.model_json_schema(),
            # A person's word reaches the agent they talk to, nobody behind it.
            delegable=False,
        ),
    )

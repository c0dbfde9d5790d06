"""Tools that nobody here runs: a person or the calling program answers. And a person's yes to a budget."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from pydantic import Field, ValidationError

from host.ports import ToolResult, ToolSpec
from host.tools.arguments import refused
from shared.approval_values import NewApproval
from shared.clock import DAY_MS
from shared.errors import PicoError
from shared.ids import APPROVAL, new_id
from shared.tool_contract import Arguments
from shared.untrusted import defused

ASK_PERSON: Final = "ask_person"
LONGEST_WAIT_MS: Final = 30 * DAY_MS


class Question(Arguments):
    """The tool's arguments."""

    question: str = Field(min_length=1, max_length=16_000, description="What you need to know, in full")
    options: list[str] | None = Field(
        None, max_length=20, description="Answers to choose from, if you know them"
    )
    timeout_ms: int | None = Field(
        None, ge=1000, le=LONGEST_WAIT_MS, description="How long to wait; a day if left out"
    )


class AskPerson:
    """Implements ``host.ports.Toolset``. It knows nothing of a run: one serves them all."""

    def __init__(self) -> None:
        self.specs = (
            ToolSpec(
                ASK_PERSON,
                "Ask the person you work for, and wait for the answer, which may take hours. Only for what "
                "you can't find out yourself and must know before you go on.",
                Question.model_json_schema(),
                delegable=False,
                read_only=True,
                asks="question",
            ),
        )

    async def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        """Say that nobody can be asked from here."""
        return ToolResult("Nobody can be asked here; say in your answer what you must know.", is_error=True)


def asked(arguments: Mapping[str, Any], call_id: str) -> NewApproval | str:
    """Return what is to be asked, or what is wrong with it."""
    try:
        question = Question.model_validate(arguments)
    except ValidationError as error:
        return refused(error).text
    life_ms = question.timeout_ms or DAY_MS
    return NewApproval(new_id(APPROVAL), "question", ASK_PERSON, arguments, call_id, life_ms=life_ms)


ask_person: Final = cache(AskPerson)


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


APPROVE_BUDGET: Final = "approve_budget"

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
        self.specs = _approval_specs()

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
def _approval_specs() -> tuple[ToolSpec, ...]:
    return (
        ToolSpec(
            APPROVE_BUDGET,
            "Let a conversation that paused at a budget go on. Only when a person has just asked for it "
            "in this conversation, naming how many tokens it may use.",
            Approval.model_json_schema(),
            # A person's word reaches the agent they talk to, nobody behind it.
            delegable=False,
        ),
    )

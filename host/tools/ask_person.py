"""The agent's question to a person. No call of it runs: its result is what the person answers."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, Final

from pydantic import Field, ValidationError

from host.ports import ToolResult, ToolSpec
from host.tools.arguments import refused
from shared.approval_values import NewApproval
from shared.clock import DAY_MS
from shared.ids import APPROVAL, new_id
from shared.tool_contract import Arguments

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

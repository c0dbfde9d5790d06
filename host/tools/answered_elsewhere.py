"""Tools that others carry out: a person answers, the calling program, the model's API."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from pydantic import Field, ValidationError

from host.ports import ToolResult, ToolSpec
from host.tools.arguments import refused
from shared.approval_values import NewApproval
from shared.clock import DAY_MS
from shared.ids import APPROVAL, new_id
from shared.settings.tools import WebTools
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


@dataclass(frozen=True, slots=True)
class AnsweredElsewhere:
    """Implements ``host.ports.Toolset``: its calls go to whoever answers; one that comes here is refused."""

    specs: Sequence[ToolSpec]
    refusal: str

    async def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        """Say that nobody can be asked from here."""
        return ToolResult(self.refusal.format(name=name), is_error=True)


@cache
def ask_person() -> AnsweredElsewhere:
    """Return what asks a person. It knows nothing of a run: one serves them all."""
    spec = ToolSpec(
        ASK_PERSON,
        "Ask the person you work for, and wait for the answer, which may take hours. Only for what "
        "you can't find out yourself and must know before you go on.",
        Question.model_json_schema(),
        delegable=False,
        read_only=True,
        asks="question",
    )
    return AnsweredElsewhere((spec,), "Nobody can be asked here; say in your answer what you must know.")


def asked(arguments: Mapping[str, Any], call_id: str) -> NewApproval | str:
    """Return what is to be asked, or what is wrong with it."""
    try:
        question = Question.model_validate(arguments)
    except ValidationError as error:
        return refused(error).text
    life_ms = question.timeout_ms or DAY_MS
    return NewApproval(new_id(APPROVAL), "question", ASK_PERSON, arguments, call_id, life_ms=life_ms)


PREFIX: Final = "client__"
"""Before the names that the model sees, so that none of them can hide a tool of the host."""


@dataclass(frozen=True, slots=True)
class ClientTool:
    """A tool as the calling program describes it; ``input_schema`` is that of an object."""

    name: str
    description: str
    input_schema: Mapping[str, Any]


def client_tools(tools: Sequence[ClientTool]) -> AnsweredElsewhere:
    """Return the tools of the calling program."""
    specs = [
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
    return AnsweredElsewhere(specs, "The program that has this tool can't be asked here.")


SEARCH: Final = "web_search"
FETCH: Final = "web_fetch"
TYPES: Final = {SEARCH: "web_search_20260318", FETCH: "web_fetch_20260318"}
"""Versions: https://platform.claude.com/docs/en/agents-and-tools/tool-use/server-tools"""
LARGEST_PAGE: Final = 20_000
"""Tokens of one fetched page."""


def web_tools(settings: WebTools) -> AnsweredElsewhere:
    """Return what is switched on of the web: the model's API runs it.

    Results come inside the model's reply, written by strangers; the system prompt says so. They are stored
    and sent back as they came, ``encrypted_content`` included, or the API refuses the conversation.
    """
    specs = [
        ToolSpec(name, "", {}, read_only=True, definition=_definition(name, settings))
        for name, wanted in ((SEARCH, settings.search), (FETCH, settings.fetch))
        if wanted
    ]
    # Such a call never gets here, unless a server speaks another protocol.
    return AnsweredElsewhere(specs, "{name} is run by the model's API, which did not run it.")


def _definition(name: str, settings: WebTools) -> Mapping[str, Any]:
    found: dict[str, Any] = {
        "type": TYPES[name],
        "name": name,
        "max_uses": settings.max_uses,
        # Called by the model, not from code that the API would run for it.
        "allowed_callers": ["direct"],
    }
    if settings.allowed_domains:
        found["allowed_domains"] = list(settings.allowed_domains)
    if settings.blocked_domains:
        found["blocked_domains"] = list(settings.blocked_domains)
    if name == FETCH:
        found["max_content_tokens"] = LARGEST_PAGE
    return found

"""Tools that need no sandbox: a person, the calling program or the model's API answers, or the host itself.

The host approves budgets and loads skills; installed packages bring more.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Any, ClassVar, Final

from pydantic import Field, ValidationError

from host.ports import ToolResult, Toolset, ToolSpec
from host.skills.catalogue import WORDS, Catalogue, Skill
from host.skills.knowledge import Knowledge
from host.tools.arguments import BadArguments, check, refused
from shared.approval_values import NewApproval
from shared.clock import DAY_MS
from shared.errors import Misconfigured, PicoError
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


LOAD_SKILL: Final = "load_skill"
_SCHEMA: Final[Mapping[str, Any]] = {
    "type": "object",
    "properties": {"name": {"type": "string", "description": "Name of the skill"}},
    "required": ["name"],
    "additionalProperties": False,
}
SPEC: Final = ToolSpec(
    LOAD_SKILL,
    "Get the instructions of a skill, and where its own files are. The system prompt lists the skills; one "
    "that was added a moment ago can be loaded too.",
    _SCHEMA,
    read_only=True,
)


@dataclass(frozen=True, slots=True)
class SkillTools:
    """Implements ``host.ports.Toolset`` over what the host knows of skills."""

    _knowledge: Knowledge
    specs: ClassVar = (SPEC,)

    async def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        """Return a skill's instructions as they are now; the operator's are not marked as untrusted."""
        try:
            wanted = str(check(arguments, SPEC.input_schema)["name"])
        except BadArguments as bad:
            return ToolResult(str(bad), is_error=True)
        skills = (await self._knowledge.look()).skills
        skill = skills.effective.get(wanted)
        found = None if skill is None else await self._knowledge.instructions(skill)
        if skill is None or found is None:
            return ToolResult(_missing(wanted, skills), is_error=True)
        note = "\n\n[cut: the rest is in its SKILL.md]" if found.cut else ""
        return ToolResult(f"{_heading(skill)}\n\n{found.text.strip()}{note}", trusted=skill.tier != "user")


def _missing(wanted: str, skills: Catalogue) -> str:
    names = ", ".join(skills.effective) or "none"
    broken = [
        each
        for each in skills.problems
        if each.path.rpartition("/")[2] == wanted or f"its name is {wanted}, " in each.problem
    ]
    if broken:
        return f"The skill in {broken[0].path} can't be loaded. {broken[0].problem}. There are: {names}."
    return f"There is no skill named {wanted[:100]}. There are: {names}."


def _heading(skill: Skill) -> str:
    whose = WORDS[skill.tier]
    return f"[the {whose} skill {skill.name}; its files are in {skill.path}, and relative names start there]"


GROUP: Final = "picoclaw.tools"
"""The entry points at which packages offer tools: a callable from its options to a ``Toolset``."""


def installed_tools(wanted: Mapping[str, Mapping[str, Any]]) -> list[Toolset]:
    """Return the toolsets that ``tools.plugins`` names, one for all runs; raises Misconfigured."""
    return [_installed(name, options) for name, options in wanted.items()]


def _installed(name: str, options: Mapping[str, Any]) -> Toolset:
    found = list(entry_points(group=GROUP, name=name))
    if not found:
        raise Misconfigured(f"tools.plugins.{name}: no installed package offers tools of this name")
    try:
        toolset: Toolset = found[0].load()(options)
        list(toolset.specs)
    except Exception as error:
        raise Misconfigured(f"tools.plugins.{name}: {type(error).__name__}: {error}") from error
    return toolset

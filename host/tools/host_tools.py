"""Tools that the host carries out itself: budgets approved, skills loaded; those of installed packages."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Any, ClassVar, Final

from pydantic import Field, ValidationError

from host.ports import ToolResult, Toolset, ToolSpec
from host.skills.catalogue import WORDS, Catalogue, Skill
from host.skills.knowledge import Knowledge
from host.tools.arguments import BadArguments, check, refused
from shared.errors import Misconfigured, PicoError
from shared.tool_contract import Arguments

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

"""The tool that loads a skill: its instructions come when they are needed, not with every prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from host.ports import ToolResult, ToolSpec
from host.skills.catalogue import WORDS, Catalogue, Skill
from host.skills.knowledge import Knowledge
from host.tools.arguments import BadArguments, check

NAME: Final = "load_skill"
_SCHEMA: Final[Mapping[str, Any]] = {
    "type": "object",
    "properties": {"name": {"type": "string", "description": "Name of the skill"}},
    "required": ["name"],
    "additionalProperties": False,
}
SPEC: Final = ToolSpec(
    NAME,
    "Get the instructions of a skill, and where its own files are. The system prompt lists the skills; one "
    "that was added a moment ago can be loaded too.",
    _SCHEMA,
    read_only=True,
)


class SkillTools:
    """Implements ``host.ports.Toolset`` over what the host knows of skills."""

    specs = (SPEC,)

    def __init__(self, knowledge: Knowledge) -> None:
        self._knowledge = knowledge

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

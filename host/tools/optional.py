"""Tools that not every host has: those of skills, of the web, and of installed packages."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any, Final

from host.ports import ToolResult, Toolset, ToolSpec
from host.skills.catalogue import WORDS, Catalogue, Skill
from host.skills.knowledge import Knowledge
from host.tools.arguments import BadArguments, check
from shared.errors import Misconfigured
from shared.settings.tools import WebTools

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


SEARCH: Final = "web_search"
FETCH: Final = "web_fetch"
TYPES: Final = {SEARCH: "web_search_20260318", FETCH: "web_fetch_20260318"}
"""Versions: https://platform.claude.com/docs/en/agents-and-tools/tool-use/server-tools"""
LARGEST_PAGE: Final = 20_000
"""Tokens of one fetched page."""


class WebToolset:
    """Implements ``host.ports.Toolset``: offers what is switched on, and runs nothing: the model's API does.

    Results come inside the model's reply, written by strangers; the system prompt says so. They are stored
    and sent back as they came, ``encrypted_content`` included, or the API refuses the conversation.
    """

    def __init__(self, settings: WebTools) -> None:
        self.specs = [
            ToolSpec(name, "", {}, read_only=True, definition=_definition(name, settings))
            for name, wanted in ((SEARCH, settings.search), (FETCH, settings.fetch))
            if wanted
        ]

    async def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        """Refuse: such a call never leaves the API, unless a server speaks another protocol."""
        return ToolResult(f"{name} is run by the model's API, which did not run it.", is_error=True)


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

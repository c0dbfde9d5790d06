"""Which skills there are (built-in, the organisation's over them, what users add), and their files' heads.

A SKILL.md begins with YAML between two lines of dashes, of which a name and a description count. Limits are
those of https://agentskills.io/specification. The text may come from an agent, so it is parsed without tags
that make objects, without anchors (which can multiply), and only up to a length.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal

from shared import jsons
from shared.settings import Settings

LONGEST: Final = 8 * 1024
"""Bytes of front matter."""
MOST_OPEN: Final = 32
"""Brackets open at once; the parser's work for each grows with those around it: 16 s for 4,000."""
MOST_EVENTS: Final = 1000
"""Keys, values, beginnings and ends; the parser takes 50 ms for so many."""

LONGEST_NAME: Final = 64
LONGEST_DESCRIPTION: Final = 1024
NAME: Final = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
_REMEMBERED: Final = 1024
_PLAIN: Final = re.compile(
    r"""^(description(?=:[ \t]+[^\s"'|>!&#])|[\w-]+(?=:[ \t]+[^\s"'|>!&*\[{#])):[ \t]+(.*(?:\n[ \t]+.*)*)""",
    re.MULTILINE,
)
"""A key and its text without quotes, which its writer meant as text also where YAML sees a number, a comment
or nothing that it knows.
"""
_LINES: Final = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*\r?$\n?", re.DOTALL | re.MULTILINE)


class BadSkill(Exception):
    """It is no skill; the sentence says what is wrong, for whoever wrote it."""


@dataclass(frozen=True, slots=True)
class Head:
    """What a skill says of itself; ``description`` is one line."""

    name: str
    description: str


def parsed(folder: str, text: str) -> Head:
    """Return the head of a SKILL.md that begins with ``text``, in ``folder``. Raises ``BadSkill``."""
    outcome = _outcome(folder, text)
    if isinstance(outcome, str):
        raise BadSkill(outcome)
    return outcome


@lru_cache(maxsize=_REMEMBERED)
def _outcome(folder: str, text: str) -> Head | str:
    try:
        return _parse(folder, text)
    except BadSkill as bad:
        return str(bad)


def _parse(folder: str, text: str) -> Head:
    found = _LINES.match(text)
    if found is None:
        what = "isn't closed by a line ---" if text.lstrip("\ufeff").startswith("---") else "is missing"
        raise BadSkill(f"its front matter {what} (within {LONGEST} bytes)")
    if len(found[1].encode()) > LONGEST:
        raise BadSkill(f"its front matter is longer than {LONGEST} bytes")
    head = _mapping(found[1])
    return Head(_name(head, folder), _description(head))


def body(text: str) -> str:
    """Return what follows the front matter."""
    found = _LINES.match(text)
    return text if found is None else text[found.end() :].lstrip("\n")


def _mapping(text: str) -> Mapping[Any, Any]:
    # Imported here: most starts need no skill before the first turn, and it takes 75 ms.
    from ruamel.yaml.error import YAMLError

    _refuse_deep(text)
    try:
        found = _loaded(_PLAIN.sub(_quoted, text))
    except YAMLError as error:
        try:
            found = _loaded(text)
        except YAMLError:
            line = getattr(getattr(error, "problem_mark", None), "line", None)
            where = "" if line is None else f" (line {line + 2})"
            raise BadSkill(f"its front matter is not YAML{where}") from None
    if not isinstance(found, Mapping):
        raise BadSkill("its front matter is not a list of keys and values")
    return found


def _loaded(text: str) -> Any:
    from ruamel.yaml import YAML

    try:
        for number, event in enumerate(YAML(typ="safe", pure=True).parse(text)):
            if number > MOST_EVENTS:
                raise BadSkill(f"its front matter has more than {MOST_EVENTS} parts")
            if getattr(event, "anchor", None):
                raise BadSkill("its front matter has anchors or aliases; write the values out")
        return YAML(typ="safe", pure=True).load(text)
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise BadSkill("its front matter has a value that YAML can't hold") from None


def _quoted(entry: re.Match[str]) -> str:
    """Return a line with its text in quotes: ``description: Use when: a price is asked for in #sales``."""
    key, text = entry.groups()
    said = text if key == "description" else re.split(r"\s#", text)[0]
    return f"{key}: {jsons.dumps(' '.join(said.split()))}" + "\n" * text.count("\n")


def _refuse_deep(text: str) -> None:
    depth = 0
    for bracket in re.findall(r"[\[{\]}]", text):
        depth = depth + 1 if bracket in "[{" else max(depth - 1, 0)
        if depth > MOST_OPEN:
            raise BadSkill(f"its front matter has more than {MOST_OPEN} brackets open at once")


def _name(head: Mapping[Any, Any], folder: str) -> str:
    name = head.get("name")
    if not isinstance(name, str):
        raise BadSkill("its front matter has no name (a text)")
    if len(name) > LONGEST_NAME or not NAME.fullmatch(name):
        raise BadSkill(f"its name must be 1 to {LONGEST_NAME} of a-z, 0-9 and single hyphens between them")
    if name != folder:
        raise BadSkill(f"its name is {name}, which must be the name of its folder")
    return name


def _description(head: Mapping[Any, Any]) -> str:
    description = head.get("description")
    if not isinstance(description, str) or not description.strip():
        raise BadSkill("its front matter has no description (a text)")
    if len(description) > LONGEST_DESCRIPTION:
        raise BadSkill(f"its description is longer than {LONGEST_DESCRIPTION} characters")
    printable = "".join(letter if letter.isprintable() else " " for letter in description)
    return " ".join(printable.split())


SHIPPED: Final = Path(__file__).parent / "built_in"
FOLDER: Final = "skills"
"""The directory of skills in ORG_DIR and in the workspace."""


def built_in_dir(settings: Settings) -> Path:
    """Return BUILT_IN_SKILLS_DIR, or the skills that come with the program."""
    return settings.built_in_skills_dir or SHIPPED


def closed_to_agents(settings: Settings) -> tuple[Path, ...]:
    """Return the directories of skills that agents may read and run but not write."""
    places = [built_in_dir(settings), settings.skills_dir]
    if settings.org_dir is not None:
        places.append(settings.org_dir / FOLDER)
    workspace = settings.memory_dir.resolve()
    return tuple(place for place in places if not place.resolve().is_relative_to(workspace))


Tier = Literal["builtIn", "org", "user"]

WORDS: Final[Mapping[Tier, str]] = {"builtIn": "built-in", "org": "organisation's", "user": "user's"}
LARGEST_FILE: Final = 64 * 1024
"""Bytes of a SKILL.md that load_skill gives."""


@dataclass(frozen=True, slots=True)
class SkillFile:
    """A folder as it was found: the beginning of its SKILL.md and its size in bytes, or what is wrong."""

    folder: str
    text: str = ""
    size: int = 0
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a folder or a text is not used as it was meant: ``path`` as tools name it, and a sentence."""

    tier: Tier
    path: str
    problem: str


@dataclass(frozen=True, slots=True)
class Shelf:
    """A directory of skills. ``path`` is how tools name it; ``left_out`` counts folders beyond the bound.

    ``beside``: what is wrong with the texts that lie beside it.
    """

    tier: Tier
    path: str
    files: Sequence[SkillFile]
    left_out: int = 0
    beside: Sequence[Problem] = ()


@dataclass(frozen=True, slots=True)
class Skill:
    """A skill that can be loaded. ``shelf`` is the path of its directory, ``name`` its folder there."""

    name: str
    description: str
    tier: Tier
    shelf: str

    @property
    def path(self) -> str:
        """Its folder, as tools name it."""
        return f"{self.shelf}/{self.name}"


@dataclass(frozen=True, slots=True)
class Catalogue:
    """All skills of each tier, those in force by name (in the order of names), and what is wrong."""

    tiers: Mapping[Tier, Sequence[Skill]] = field(default_factory=dict)
    effective: Mapping[str, Skill] = field(default_factory=dict)
    problems: Sequence[Problem] = ()


def catalogue(shelves: Iterable[Shelf]) -> Catalogue:
    """Return what is in force, from shelves in the order built-in, ORG_DIR's, SKILLS_DIR, user.

    The organisation's take the place of built-in ones of the same name; a user's never take anyone's.
    """
    tiers: dict[Tier, list[Skill]] = {"builtIn": [], "org": [], "user": []}
    effective: dict[str, Skill] = {}
    problems: list[Problem] = []
    for shelf in shelves:
        for skill in _readable(shelf, problems):
            tiers[shelf.tier].append(skill)
            holder = effective.get(skill.name)
            if holder is not None and skill.tier == "user":
                why = f"not used: {_holder(holder)} has this name, and a user's can't take its place"
                problems.append(Problem(skill.tier, skill.path, why))
            else:
                effective[skill.name] = skill
    return Catalogue(tiers, dict(sorted(effective.items())), tuple(problems))


def _readable(shelf: Shelf, problems: list[Problem]) -> Iterator[Skill]:
    problems.extend(shelf.beside)
    if shelf.left_out:
        said = f"{shelf.left_out} more folders are not looked at"
        problems.append(Problem(shelf.tier, shelf.path, said))
    for file in shelf.files:
        path = f"{shelf.path}/{file.folder}"
        try:
            if file.fault is not None:
                raise BadSkill(file.fault)
            head = parsed(file.folder, file.text)
        except BadSkill as bad:
            problems.append(Problem(shelf.tier, path, f"not used: {bad}"))
            continue
        if file.size > LARGEST_FILE:
            said = f"its SKILL.md has {file.size} bytes; what is beyond {LARGEST_FILE} is cut"
            problems.append(Problem(shelf.tier, path, said))
        yield Skill(head.name, head.description, shelf.tier, shelf.path)


def _holder(skill: Skill) -> str:
    return f"the {WORDS[skill.tier]} skill in {skill.path}"

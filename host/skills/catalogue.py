"""Which skills there are: built-in ones, the organisation's over them, and what users add."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from host.skills.front_matter import BadSkill, parsed
from shared.settings import Settings

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
class Shelf:
    """A directory of skills. ``path`` is how tools name it; ``left_out`` counts folders beyond the bound."""

    tier: Tier
    path: str
    files: Sequence[SkillFile]
    left_out: int = 0


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
class Problem:
    """Why a folder is not used as it was meant: ``path`` as tools name it, and a sentence."""

    tier: Tier
    path: str
    problem: str


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

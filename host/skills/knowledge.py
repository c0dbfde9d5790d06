"""What the agent knows at the beginning of a turn: persona, memory, skills, read anew when they changed.

The workspace is looked at through the sandbox's door, in one round trip. The operator's own directories,
where no agent can write, are looked at in this process by the same code, which follows no link out of them.
Both cost a stamp as long as nothing changed, and next to nothing where the kernel tells that nothing did.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.to_thread

from host.ports import SandboxFault
from host.sandbox.worker.files.directories import SKILL_FILE, survey
from host.sandbox.worker.files.paths import RootPath, Roots
from host.sandbox.worker.names import Refused
from host.skills.catalogue import (
    FOLDER,
    LARGEST_FILE,
    LONGEST,
    Catalogue,
    Problem,
    Shelf,
    Skill,
    SkillFile,
    Tier,
    body,
    catalogue,
)
from host.skills.watch import Watch
from host.volumes import Looks
from shared.errors import Unavailable

PERSONA_FILES: Final = ("CLAUDE.md", "AGENTS.md", "AGENT.md")
MEMORY_FILE: Final = "MEMORY.md"
PERSONA_LIMIT: Final = 32 * 1024
"""Bytes of one persona file that reach the prompt; more is cut with a note."""

MEMORY_LIMIT: Final = 16 * 1024
"""Bytes of MEMORY.md that reach the prompt: of more the first and the last half, with a note between."""

SHORTEN: Final = "Rewrite it shorter: keep what counts, and move the rest to other files that it names."

LOOK_S: Final = 10.0
"""How long a turn waits for a file system that hangs, once, in seconds; then what is known has to do."""

MOST_SKILLS: Final = 100
"""Folders of one directory of skills that are looked at, in the order of their names."""

_HEAD: Final = LONGEST + 16  # the front matter and its two lines of dashes

logger = logging.getLogger("picoclaw.agent")

NO_SKILLS: Final = Catalogue()
NOT_READ: Final = "What the agent knows could not be read again: %s"

Look = Callable[[Mapping[str, Any]], Awaitable[Mapping[str, Any]]]
"""Asks ``survey`` about one directory. Raises ``SandboxFault`` or ``Refused``."""


@dataclass(frozen=True, slots=True)
class Text:
    """A file of ``size`` bytes as it reaches the prompt; ``cut`` is the limit that it was longer than.

    ``tail`` is then its end, where that counts.
    """

    name: str
    text: str
    cut: int | None = None
    tail: str = ""
    size: int = 0


@dataclass(frozen=True, slots=True)
class Known:
    """All of it. The same object is returned as long as nothing changed."""

    organisation: Text | None = None
    user: Text | None = None
    memory: Text | None = None
    skills: Catalogue = NO_SKILLS


@dataclass(frozen=True, slots=True)
class Wanted:
    """One directory: whose it is, how to look at it, where it lies, and what in it counts.

    ``skills`` is the directory of skills in it, ``path`` how tools name that. ``texts`` are names of which
    the first that exists counts, a limit in bytes, and how many of these are for the end of a longer file.
    ``agents_write`` says that names in it may be agents', which this process doesn't follow.
    """

    tier: Tier
    look: Look
    directory: Path
    skills: str
    path: str
    texts: Sequence[tuple[Sequence[str], int, int]] = ()
    agents_write: bool = False


class Knowledge:
    """Looks at the directories and remembers what they held. One per principal.

    ``by_path``: skills in the workspace are named by their whole path, for who works elsewhere.
    """

    def __init__(
        self,
        workspace: Look,
        *,
        workspace_dir: Path,
        built_in_dir: Path,
        org_dir: Path | None,
        skills_dir: Path,
        by_path: bool = False,
    ) -> None:
        self._by_path = by_path
        self._org = None if org_dir is None else _Directory(_organisation(org_dir))
        self._everybodys = [_Directory(_shelf("builtIn", built_in_dir)), *filter(None, [self._org])]
        self._one_reader = anyio.CapacityLimiter(1)
        self._looks = Looks(LOOK_S)
        inside = _beneath(skills_dir, workspace_dir)
        self._operators: list[_Directory] = []
        if inside is None:
            self._operators.append(_Directory(_shelf("org", skills_dir)))
        elif inside != FOLDER:
            wanted = Wanted("user", workspace, workspace_dir, inside, inside, agents_write=True)
            self._operators.append(_Directory(wanted))
        self._settle(workspace, workspace_dir, self._operators)

    def _settle(self, workspace: Look, directory: Path, more: Sequence[_Directory]) -> None:
        texts = [(PERSONA_FILES, PERSONA_LIMIT, 0), ((MEMORY_FILE,), MEMORY_LIMIT, MEMORY_LIMIT // 2)]
        path = str(directory / FOLDER) if self._by_path else FOLDER
        self._workspace = _Directory(
            Wanted("user", workspace, directory, FOLDER, path, texts, agents_write=True)
        )
        self._shelves = [*self._everybodys, *more, self._workspace]
        self._known: Known | None = None
        self._made_of: list[object] = []

    def of(self, workspace: Look, directory: Path, *, shelved: bool) -> Knowledge:
        """Return another principal's: its own words, and everybody's skills, read once for all of them.

        ``shelved``: those of SKILLS_DIR too, unless that is the operator's own.
        """
        other = copy(self)
        shared = [each for each in self._operators if shelved and each.shelf.tier == "org"]
        other._settle(workspace, directory, shared)
        return other

    async def look(self) -> Known:
        """Return what is known now. What cannot be looked at for the moment stays as it was."""
        stirred = [directory for directory in self._shelves if not directory.watch.quiet()]
        if stirred:
            try:
                # Watches are set by path: where a file system hangs, this does, and nothing of it is read.
                begun = await self._looks(lambda: [directory.begin() for directory in stirred])
            except Unavailable as error:
                logger.warning(NOT_READ, error.message)
            else:
                for directory, (number, watched) in zip(stirred, begun, strict=True):
                    await directory.refresh(number, watched)
        made_of: list[object] = [(directory.texts, directory.shelf) for directory in self._shelves]
        if self._known is None or self._made_of != made_of:
            organisation = self._org.texts[0] if self._org else None
            persona, memory = self._workspace.texts
            shelves = [directory.shelf for directory in self._shelves]
            # Parsing a hundred skills takes a second, so it leaves the loop alone.
            skills = await anyio.to_thread.run_sync(catalogue, shelves, limiter=self._one_reader)
            self._known, self._made_of = Known(organisation, persona, memory, skills), made_of
        return self._known

    async def reload(self) -> Known:
        """Forget everything, and look."""
        for directory in self._shelves:
            directory.forget()
        return await self.look()

    async def instructions(self, skill: Skill) -> Text | None:
        """Return the body of a skill's SKILL.md; None if it is gone or refused."""
        directory = next(one for one in self._shelves if one.shelf.path == skill.shelf)
        found = await directory.read(f"{skill.name}/{SKILL_FILE}", LARGEST_FILE)
        return None if found is None else Text(found.name, body(found.text), found.cut)


class _Directory:
    """One directory and what it held when it was last read."""

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        self._stamp = ""
        self.watch = Watch()
        self._taken = 0  # which look's answer is here
        self._covered = False  # whether what is watched is all that there is to see
        self._watched = _places(wanted)
        self.texts: tuple[Text | None, ...] = (None,) * len(wanted.texts)
        self.shelf = Shelf(wanted.tier, wanted.path, ())

    def forget(self) -> None:
        """Let the next look read everything."""
        self._stamp = ""
        self.watch.begin(())

    def begin(self) -> tuple[int, list[Path]]:
        """Watch what there is to see from now on; returns a number and what is watched, for ``refresh``."""
        return self.watch.begin(self._watched), self._watched

    async def refresh(self, begun: int, watched: list[Path]) -> None:
        """Look; what cannot be looked at for the moment stays as it was."""
        wanted = self._wanted
        texts = [
            {"names": list(names), "limit": limit + 1, "tail": tail} for names, limit, tail in wanted.texts
        ]
        asked = self._asked(texts, wanted.skills) | {"known": self._stamp}
        try:
            answer = await wanted.look(asked)
        except (SandboxFault, Refused, OSError) as fault:
            logger.warning(NOT_READ, type(fault).__name__)
            return
        if begun < self._taken:
            return  # another look began later and ended sooner
        self._taken = begun
        if "texts" in answer:
            self._take(answer)
        if self._covered and watched == self._watched:
            self.watch.seen(begun)

    def _take(self, answer: Mapping[str, Any]) -> None:
        wanted = self._wanted
        self._stamp = str(answer.get("stamp", ""))
        texts = _listed(answer["texts"])
        found = chain(texts, repeat(None))
        self.texts = tuple(_text(next(found), limit, tail) for _, limit, tail in wanted.texts)
        files = tuple(map(_skill_file, _listed(answer.get("skills"))))
        beside = tuple(self._unread(each) for each in texts if isinstance(each, Mapping) and "fault" in each)
        self.shelf = Shelf(wanted.tier, wanted.path, files, _number(answer.get("more")), beside)
        folders = [file.folder for file in files]
        self._covered = not answer.get("links") and not self.shelf.left_out
        self._watched = _places(wanted)
        if wanted.agents_write:
            self._covered = self._covered and not folders
        else:
            self._watched += [self._watched[-1] / folder for folder in folders]

    def _unread(self, found: Mapping[str, Any]) -> Problem:
        name, wanted = str(found.get("name"))[:100], self._wanted
        path = name if wanted.agents_write else str(wanted.directory / name)
        return Problem(wanted.tier, path, f"not read: {str(found['fault'])[:500]}")

    async def read(self, path: str, limit: int) -> Text | None:
        """Read one file below the directory of skills."""
        name = f"{self._wanted.skills}/{path}"
        asked = self._asked([{"names": [name], "limit": limit + 1}], None) | {"known": ""}
        try:
            answer = await self._wanted.look(asked)
        except (SandboxFault, Refused, OSError):
            return None
        [found] = _listed(answer.get("texts")) or [None]
        return _text(found, limit)

    def _asked(self, texts: list[dict[str, Any]], skills: str | None) -> dict[str, Any]:
        return {"texts": texts, "skills": skills, "most": MOST_SKILLS, "limit": _HEAD}


def _places(wanted: Wanted) -> list[Path]:
    return list(dict.fromkeys([wanted.directory, wanted.directory / wanted.skills]))


def _organisation(directory: Path) -> Wanted:
    texts = [(PERSONA_FILES, PERSONA_LIMIT, 0)]
    return Wanted("org", directly(directory), directory, FOLDER, str(directory / FOLDER), texts)


def _shelf(tier: Tier, directory: Path) -> Wanted:
    return Wanted(tier, directly(directory), directory, ".", str(directory))


def directly(directory: Path, *, hard_links: bool = True) -> Look:
    """Return a way to look at a directory in this process; links out of it are not followed.

    ``hard_links``: files may have other names, as package tools make them; not where agents write.
    """
    root = RootPath(str(directory), False, hard_links=hard_links)

    async def look(asked: Mapping[str, Any]) -> Mapping[str, Any]:
        # In the loop: a few microseconds for each file, a tenth of what passing it to a thread costs.
        with Roots([root]) as roots:
            return survey(roots, dict(asked))

    return look


def _beneath(path: Path, workspace: Path) -> str | None:
    """Return a path relative to the workspace, or None if it lies elsewhere."""
    try:
        return str(path.resolve().relative_to(workspace.resolve()))
    except ValueError:
        return None


# --- what comes out of the sandbox is not trusted to have the right shape


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _number(value: Any) -> int:
    return value if isinstance(value, int) and value >= 0 else 0


def _text(found: Any, limit: int, tail: int = 0) -> Text | None:
    if not isinstance(found, Mapping) or not isinstance(found.get("text"), str):
        return None
    data, size = found["text"].encode("utf-8", "replace"), _number(found.get("size"))
    name = str(found.get("name", ""))
    if len(data) <= limit:
        return Text(name, data.decode("utf-8", "ignore"), size=size)
    end = str(found.get("tail", "")).encode("utf-8", "replace")[-tail:] if tail else b""
    kept = data[: limit - tail].decode("utf-8", "ignore")
    return Text(name, kept, limit, end.decode("utf-8", "ignore").lstrip("\ufffd"), size)


def _skill_file(found: Any) -> SkillFile:
    found = found if isinstance(found, Mapping) else {}
    folder, text, fault = (found.get(name) for name in ("folder", "text", "fault"))
    if isinstance(text, str):
        return SkillFile(str(folder), text[:_HEAD], _number(found.get("size")))
    said = "it has no SKILL.md" if found.get("missing") else str(fault)[:500]
    return SkillFile(str(folder), fault=said)

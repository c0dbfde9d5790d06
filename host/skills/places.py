"""Where skills lie, by the settings."""

from __future__ import annotations

from pathlib import Path
from typing import Final

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

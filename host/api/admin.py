"""GET /admin/skills and POST /admin/reload-skills: what the agent can load, from where, and what is wrong."""

from __future__ import annotations

import dataclasses
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from host.agent.knowledge import Knowledge
from host.api.responses import JSON
from host.skills.catalogue import Catalogue


class AdminApi:
    """The routes below /admin."""

    def __init__(self, knowledge: Knowledge) -> None:
        self._knowledge = knowledge

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route("/admin/skills", self.skills, methods=["GET"]),
            Route("/admin/reload-skills", self.reload, methods=["POST"]),
        ]

    async def skills(self, request: Request) -> Response:
        """List the skills as the next turn will see them."""
        return JSON(skills_view((await self._knowledge.look()).skills))

    async def reload(self, request: Request) -> Response:
        """Read everything again, changed or not, and list it."""
        return JSON({"status": "reloaded", **skills_view((await self._knowledge.reload()).skills)})


def skills_view(catalogue: Catalogue) -> dict[str, Any]:
    """Return the names of each tier and of those in force, what is known of these, and the problems."""
    names: dict[str, list[str]] = {
        tier: [skill.name for skill in skills] for tier, skills in catalogue.tiers.items()
    }
    details = [
        {"name": skill.name, "description": skill.description, "tier": skill.tier, "path": skill.path}
        for skill in catalogue.effective.values()
    ]
    problems = [dataclasses.asdict(problem) for problem in catalogue.problems]
    names["effective"] = list(catalogue.effective)
    return {"skills": names, "details": details, "problems": problems}

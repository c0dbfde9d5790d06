"""The operator's routes: skills, workspace and memory, stopping, the tokens of outside agents.

A token counts at /mcp alone (docs/mcp.md).
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Annotated, Any, Final

from pydantic import Field, StringConstraints
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from host.http.auth import TokenBook
from host.http.bodies import JSON, WHOLE, Body, Text, page_of, read_body
from host.ports import SandboxFault
from host.sandbox.client import HOST, Sandbox
from host.skills.catalogue import Catalogue
from host.skills.knowledge import MEMORY_FILE, Knowledge
from shared.clock import iso, iso_or_none
from shared.errors import Conflict, NotFound
from shared.ids import Token
from shared.store.store import Store


class StopRequest(Body):
    """POST /control/stop."""

    reason: Annotated[Text, Field(max_length=1000)] = "requested"


class ControlApi:
    """Stopping the host."""

    def __init__(self, stop: Callable[[str], None]) -> None:
        self._stop = stop

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [Route("/control/stop", self.stop, methods=["POST"])]

    async def stop(self, request: Request) -> Response:
        """Begin to drain; runs in flight get their grace."""
        body = await read_body(request, StopRequest)
        self._stop(body.reason)
        message = "The host takes no new runs, lets the running ones end, stores everything and exits."
        return JSON({"status": "stopping", "reason": body.reason, "message": message})


LONGEST_LIFE_MS: Final = 10 * 366 * 24 * 3600 * 1000

ConversationId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:@-]{0,127}$")]
"""An id that a tool server may be born with."""


class NewTokenRequest(Body):
    """POST /tokens."""

    conversation_id: ConversationId
    main: bool = False
    expires_in_ms: Annotated[int, Field(ge=1000, le=LONGEST_LIFE_MS), WHOLE] | None = None


class TokensApi:
    """The token routes."""

    def __init__(self, store: Store, book: TokenBook) -> None:
        self._store = store
        self._book = book

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route("/tokens", self.create, methods=["POST"]),
            Route("/tokens", self.list, methods=["GET"]),
            Route("/tokens/{id}", self.revoke, methods=["DELETE"]),
        ]

    async def create(self, request: Request) -> Response:
        """Make a token; its text is in this answer and never again."""
        body = await read_body(request, NewTokenRequest)
        token, text = await self._book.issue(
            body.conversation_id, is_main=body.main, life_ms=body.expires_in_ms
        )
        return JSON({**token_view(token), "token": text}, status_code=201)

    async def list(self, request: Request) -> Response:
        """List tokens, without their texts."""
        limit, cursor = page_of(request)
        page = await self._store.tokens.page(limit=limit, cursor=cursor)
        return JSON({"tokens": [token_view(token) for token in page.items], "next_cursor": page.next_cursor})

    async def revoke(self, request: Request) -> Response:
        """End a token."""
        token_id = request.path_params["id"]
        if not await self._book.revoke(token_id):
            raise NotFound(f"token not found: {token_id}")
        return Response(status_code=204)


def token_view(token: Token) -> dict[str, Any]:
    """Return a token as it leaves the host: without what makes it one."""
    return {
        "id": token.id,
        "conversation_id": token.conversation_id,
        "main": token.is_main,
        "created_at": iso(token.created_at),
        "expires_at": iso_or_none(token.expires_at),
    }


class MemoryRequest(Body):
    """PUT /admin/memory; ``version`` is that of the text which this one replaces, null if there is none."""

    text: Annotated[Text, Field(max_length=100_000)]
    version: Text | None


class AdminApi:
    """The routes below /admin."""

    def __init__(self, knowledge: Knowledge, sandbox: Sandbox) -> None:
        self._knowledge = knowledge
        self._sandbox = sandbox

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route("/admin/skills", self.skills, methods=["GET"]),
            Route("/admin/reload-skills", self.reload, methods=["POST"]),
            Route("/admin/workspace", self.workspace, methods=["GET"]),
            Route("/admin/memory", self.memory, methods=["PUT"]),
        ]

    async def skills(self, request: Request) -> Response:
        """List the skills as the next turn will see them."""
        return JSON(skills_view((await self._knowledge.look()).skills))

    async def reload(self, request: Request) -> Response:
        """Read everything again, changed or not, and list it."""
        return JSON({"status": "reloaded", **skills_view((await self._knowledge.reload()).skills)})

    async def workspace(self, request: Request) -> Response:
        """Return a directory's listing (a path that is empty or ends in /), or a file's text."""
        return JSON(await self._look(request.query_params.get("path", "")))

    async def memory(self, request: Request) -> Response:
        """Replace the memory's text, if nobody changed it meanwhile."""
        body = await read_body(request, MemoryRequest)
        try:
            now = (await self._look(MEMORY_FILE))["version"]
        except NotFound:
            now = None
        if body.version != now:
            raise Conflict("version: the memory was changed meanwhile; read it again", code="changed")
        try:
            await self._sandbox.save_file(HOST, MEMORY_FILE, body.text.encode())
        except SandboxFault as fault:
            raise Conflict(f"The memory can't be written: {fault}", code="not_written") from None
        return JSON(await self._look(MEMORY_FILE))

    async def _look(self, path: str) -> dict[str, Any]:
        """Look at the workspace as agents do: what they can't reach isn't there."""
        tool = "read_text" if path and not path.endswith("/") else "list_dir"
        asked = {"path": path or ".", "limit": 512 * 1024}
        try:
            found = await self._sandbox.file(HOST, self._sandbox.policy.workspace, tool, asked)
        except SandboxFault as fault:
            raise NotFound(f"path: {fault}") from None
        version = hashlib.sha256(found["text"].encode()).hexdigest()
        return {"path": path, "text": found["text"], "version": version}


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

"""The OpenAI-compatible door: POST /v1/chat/completions and GET /v1/models, for existing chat programs."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from host.runs.service import RunService
from shared.clock import now_ms
from shared.errors import NotFound
from shared.settings import Settings
from shared.store.store import Store

if TYPE_CHECKING:
    from host.http.openai.door import OpenAiDoor

NO_V1: Final = "The base address ends in /v1: "
CHAT: Final = "use POST /v1/chat/completions."
ELSEWHERE: Final = {
    "/chat/completions": f"{NO_V1}{CHAT}",
    "/models": f"{NO_V1}use GET /v1/models.",
    **{f"/{name}": f"{NO_V1}{CHAT}" for name in ("completions", "responses", "embeddings")},
    "/v1": f"This is the base address: {CHAT}",
    "/v1/completions": f"There are no completions of plain text here: {CHAT}",
    "/v1/responses": f"The Responses API is not offered here: {CHAT}",
    "/v1/embeddings": "There are no embeddings here: use a server that has a model for them.",
}
"""What OpenAI's clients ask for that isn't here, or isn't there, and what to use."""


class OpenAiApi:
    """The routes below /v1."""

    def __init__(self, store: Store, runs: RunService, settings: Settings) -> None:
        self._parts = store, runs, settings
        self._created = now_ms() // 1000

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route("/v1/chat/completions", self.complete, methods=["POST"]),
            Route("/v1/models", self.list, methods=["GET"]),
            Route("/v1/models/{id:path}", self.get, methods=["GET"]),
            *(Route(path, self.elsewhere, methods=["GET", "POST"]) for path in ELSEWHERE),
        ]

    async def elsewhere(self, request: Request) -> Response:
        """Say what to use instead."""
        raise NotFound(ELSEWHERE[request.scope["path"]])

    async def list(self, request: Request) -> Response:
        """List the models."""
        return await self._door.list(request)

    async def get(self, request: Request) -> Response:
        """Return one model."""
        return await self._door.get(request)

    async def complete(self, request: Request) -> ASGIApp:
        """Say the last message in its conversation, and answer whole or in pieces."""
        return await self._door.complete(request)

    @cached_property
    def _door(self) -> OpenAiDoor:
        # Its shapes take a part of the start that most hosts never need.
        from host.http.openai.door import OpenAiDoor

        return OpenAiDoor(*self._parts, self._created)

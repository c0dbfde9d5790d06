"""GET /openapi.json."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from host.http.bodies import JSON


class OpenApi:
    """The document's route."""

    def __init__(self, version: str) -> None:
        self._version = version

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [Route("/openapi.json", self.get, methods=["GET"])]

    async def get(self, request: Request) -> Response:
        """Return the document."""
        # All shapes of all answers: nothing that a start should wait for.
        from host.http.openapi_document import document

        return JSON(document(self._version))

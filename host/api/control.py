"""POST /control/stop: the same end as SIGTERM."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from host.api.body import Body, Text, read_body
from host.api.responses import JSON


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

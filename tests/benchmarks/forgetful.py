"""A host that keeps nothing over a kill, shows everything to everybody, and repeats what it was told once.

``PORT=... python -m tests.benchmarks.forgetful``
"""

from __future__ import annotations

import os

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

KEPT: dict[str, list[str]] = {}


async def health(_: Request) -> Response:
    """Answer at once."""
    return Response()


async def chat(request: Request) -> Response:
    """Keep a message, the first one twice."""
    body = await request.json()
    kept = KEPT.setdefault(body["conversation"], [])
    kept.extend([body["message"]] * (1 if kept else 2))
    return JSONResponse({})


async def messages(request: Request) -> Response:
    """Tell what is in a conversation."""
    return JSONResponse(KEPT.get(request.path_params["conversation"], []))


if __name__ == "__main__":
    routes = [
        Route("/health", health),
        Route("/chat", chat, methods=["POST"]),
        Route("/chat/{conversation}", messages),
    ]
    uvicorn.run(Starlette(routes=routes), port=int(os.environ["PORT"]), log_level="warning")

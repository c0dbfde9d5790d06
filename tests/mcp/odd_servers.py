"""Servers of other people that shake hands properly and then list and answer what a test sets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import anyio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from shared import jsons

SAID: dict[str, Any] = {"content": [{"type": "text", "text": "hello"}]}
EVIL = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^(a+)+$"}}, "required": ["a"]}
SLOW = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}


@dataclass
class OddServer:
    """One server: ``tools`` is its list, ``answer`` its result of every call, ``error`` stands in its place.

    ``status`` answers every request alone; ``as_event`` wraps answers as server-sent
    events, behind those of ``before``; ``mute``: it never answers; ``cursor``: of its list's next page, again
    and again; ``pages``: empty ones that come before its list.
    """

    tools: Any = field(default_factory=list)
    answer: Any = field(default_factory=lambda: SAID)
    error: dict[str, Any] | None = None
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    version: str = "2025-06-18"
    as_event: bool = False
    mute: bool = False
    cursor: str | None = None
    pages: int = 0
    before: list[dict[str, Any]] = field(default_factory=list)
    replies: dict[str, dict[str, Any]] = field(default_factory=dict)
    calls: list[dict[str, Any]] = field(default_factory=list)

    def app(self) -> Starlette:
        """Return the app."""
        return Starlette(routes=[Route("/mcp", self._serve, methods=["GET", "POST", "DELETE"])])

    async def _serve(self, request: Request) -> Response:
        if self.mute:
            await anyio.sleep_forever()
        if self.status:
            return Response(status_code=self.status, headers=self.headers)
        if request.method != "POST":
            return Response(status_code=405)
        message = jsons.loads(await request.body())
        if "method" not in message:
            self.replies[message["id"]] = message
        if "id" not in message or "method" not in message:
            return Response(status_code=202)
        said = {"jsonrpc": "2.0", "id": message["id"], **self._said(message)}
        if self.as_event:
            events = [{"jsonrpc": "2.0", **each} for each in self.before] + [said]
            text = "".join(f"data: {jsons.dumps(event)}\n\n" for event in events)
            return Response(text, media_type="text/event-stream")
        return JSONResponse(said)

    def _said(self, message: dict[str, Any]) -> dict[str, Any]:
        match message["method"]:
            case "initialize":
                info = {"name": "odd", "version": "1"}
                able: dict[str, Any] = {"tools": {}, "resources": {}}
                result = {"protocolVersion": self.version, "capabilities": able, "serverInfo": info}
                return {"result": result}
            case "tools/list" if self.pages:
                self.pages -= 1
                return {"result": {"tools": [], "nextCursor": f"{self.pages} more"}}
            case "tools/list":
                return {"result": {"tools": self.tools, "nextCursor": self.cursor}}
            case "tools/call":
                self.calls.append(message["params"])
                return {"result": self.answer} if self.error is None else {"error": self.error}
            case "resources/read":
                text = f"the text of {message['params']['uri']}"
                return {"result": {"contents": [{"uri": "x://y", "text": text}]}}
        return {"error": {"code": -32601, "message": "Method not found"}}


def tool(name: Any, schema: Any = None, **more: Any) -> dict[str, Any]:
    """Return a tool as it is listed; without a schema where there is none."""
    return {"name": name, **({} if schema is None else {"inputSchema": schema}), **more}

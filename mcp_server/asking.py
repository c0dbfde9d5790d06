"""An outside agent's asks: passed on to the running host, which serves them for whom it was born."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import anyio
import mcp_types as types
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.shared.exceptions import MCPError
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from mcp_server import session_request
from mcp_server.identity import Identity
from shared import jsons
from shared.ask_contract import ASK_TOOLS, TASK_METHODS, TASKS, ask_listing

LONGEST: Final = 16 * 1024 * 1024
"""Longest answer that is read, in bytes."""
NO_HOST: Final = "No host is running: start one on the same store, then ask again."
LOST: Final = "The host ended before it answered; the run may go on when it is back."
STARTING_S: Final = (0.0, 0.3, 0.9)
"""Pauses before the tries to reach the host."""
CANCEL: Final = b"cancel\n"

Report = Callable[[float, float | None, str], Awaitable[None]]
"""Tells the client how far its request is, if it asked to hear that."""


class Asking:
    """A middleware of the protocol server that adds what the host serves."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity

    async def __call__(self, ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        """Serve a request."""
        method, params = ctx.method, ctx.params or {}
        if method in TASK_METHODS or (method == "tools/call" and params.get("name") in ASK_TOOLS):
            result = await self._ask(method, params, ctx.session.report_progress)
            modern = ctx.protocol_version in MODERN_PROTOCOL_VERSIONS
            return {"resultType": "complete", **result} if modern else result
        served: Any = await call_next(ctx)
        if method == "tools/list":
            served["tools"] = [*served["tools"], *ask_listing()]
        elif method == "server/discover":
            served["capabilities"]["extensions"] = {TASKS: {}}
        return served  # type: ignore[no-any-return]  # what the runner serialized: a dict

    async def _ask(self, method: str, params: Mapping[str, Any], report: Report) -> dict[str, Any]:
        peer = await self._line()
        if peer is None:
            return _no_answer(method, NO_HOST)
        answer = await _answer(peer, jsons.dump_bytes({"method": method, "params": params}), report)
        if answer is None:
            return _no_answer(method, LOST)
        if "error" in answer:
            raise MCPError.from_error_data(types.ErrorData.model_validate(answer["error"]))
        result: dict[str, Any] = answer["result"]
        return result

    async def _line(self) -> socket.socket | None:
        """Return a line to the host, None if there is no host; one that starts has its process soon."""
        for pause in STARTING_S:
            await anyio.sleep(pause)
            ours, theirs = socket.socketpair()
            with theirs:
                try:
                    session_request.hand_over(self._identity, [theirs.fileno()] * 3, to_host=True).close()
                except OSError:
                    ours.close()
                else:
                    return ours
        return None


async def _answer(peer: socket.socket, request: bytes, report: Report) -> dict[str, Any] | None:
    """Return what the host says to a line, None if it goes away first; report how far it is until then."""
    reader, writer = await asyncio.open_connection(sock=peer, limit=LONGEST)
    try:
        writer.write(request + b"\n")
        while line := await reader.readline():
            said: dict[str, Any] = jsons.loads(line)
            if "progress" not in said:
                return said
            await report(said["progress"], None, said["message"])
    except ConnectionError:
        pass
    except anyio.get_cancelled_exc_class():
        writer.write(CANCEL)
        raise
    finally:
        writer.close()
    return None


def _no_answer(method: str, sentence: str) -> dict[str, Any]:
    """Return an error result, or raise a protocol error where a method has no such result."""
    if method != "tools/call":
        raise MCPError(code=types.INTERNAL_ERROR, message=sentence)
    return {"content": [{"type": "text", "text": sentence}], "isError": True}

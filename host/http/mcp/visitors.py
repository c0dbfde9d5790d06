"""Agents beside this host ask over a socket: a line asks, some say how far it is, the last the outcome."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

import anyio

from host.http.callers import Caller
from host.http.mcp import wire
from host.http.mcp.asks import Asks, Tell
from host.mcp_clients.json_rpc import RequestRefused
from host.runs.principals import PrincipalCache
from shared import jsons
from shared.errors import PicoError

logger = logging.getLogger("picoclaw.mcp")

LONGEST: Final = 4 * 1024 * 1024
"""Longest request of a visitor, in bytes."""


class Visitors:
    """Serves them, each as whom its tool server was born for."""

    def __init__(self, asks: Asks, principals: PrincipalCache) -> None:
        self._asks = asks
        self._principals = principals

    async def visit(self, who: Mapping[str, Any], peer: socket.socket) -> None:
        """Serve one request."""
        reader, writer = await asyncio.open_connection(sock=peer, limit=LONGEST)

        def say(said: Mapping[str, Any]) -> None:
            writer.write(jsons.dump_bytes(said) + b"\n")

        try:
            line = await reader.readline()
            async with anyio.create_task_group() as group:
                group.start_soon(_until_cancelled, reader, group.cancel_scope)
                say(await self._outcome(who, line, say))
                group.cancel_scope.cancel()
        except (OSError, ValueError):
            logger.info("an agent beside this host went away")
        finally:
            writer.close()

    async def _outcome(self, who: Mapping[str, Any], line: bytes, tell: Tell) -> wire.Outcome:
        try:
            said = jsons.loads(line)
            principal = await self._principals.active(who["principal_id"])
            scopes = frozenset(("mcp", "chat"))
            caller = Caller(principal, who["conversation_id"], who["is_main"], "stdio", scopes)
            return {"result": await self._asks.serve(caller, said["method"], said["params"], tell)}
        except RequestRefused as refused:
            return {"error": dict(refused.error)}
        except PicoError as error:
            return {"error": {"code": wire.INTERNAL_ERROR, "message": error.message}}
        except Exception:
            # One visitor must not end the others; what is wrong here is in the log.
            logger.exception("an ask of an agent beside this host failed")
            return {"error": {"code": wire.INTERNAL_ERROR, "message": "The host failed inside."}}


async def _until_cancelled(reader: asyncio.StreamReader, scope: anyio.CancelScope) -> None:
    """Cancel a visitor's request by its word; one that merely goes away leaves the run alone."""
    with suppress(OSError, ValueError):
        if await reader.readline():
            scope.cancel()

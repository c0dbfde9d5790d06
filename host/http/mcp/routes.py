"""/mcp: Streamable HTTP for outside agents, in both protocol eras, in front of the tool servers.

The host only carries messages: each goes to the tool server of the conversation that the caller's token is
bound to. That server never speaks first, so an answer is one JSON body and there is nothing to stream or to
resume; a GET for a stream is answered 405, as the specification lets a server do. What other agents ask of
this one is served by the host itself (``Asks``): over HTTP, and over a socket for those beside it
(``Visitors``).
"""

import asyncio
import logging
import socket
from collections.abc import Iterable, Mapping, Set
from contextlib import suppress
from typing import Any, Final
from urllib.parse import urlsplit

import anyio
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response

from host.http.auth import TokenBook
from host.http.bodies import JSON, ErrorShape, TooManyValues, raw_body
from host.http.callers import Caller
from host.http.mcp import wire
from host.http.mcp.asks import Asks, Tell
from host.http.mcp.wire import McpSession, McpSessions
from host.http.routing import Api, Parameter, operation
from host.mcp_clients.json_rpc import RequestRefused, SessionLost
from host.mcp_clients.tool_servers import (
    HANDSHAKE_VERSIONS,
    PROTOCOL,
    STATELESS_VERSIONS,
    NoSession,
    ToolServers,
)
from host.mcp_clients.zygote import Key
from host.runs.principals import PrincipalCache
from shared import jsons
from shared.ask_contract import ASK_TOOLS, TASK_METHODS, TASKS, ask_listing
from shared.errors import Forbidden, InvalidInput, NotFound, PicoError, Unavailable
from shared.principals import SIGNED
from shared.settings.sections import is_address

LOCAL: Final = frozenset({"localhost", "127.0.0.1", "::1"})
ANY: Final = "*"


class McpGate:
    """Checks Host and Origin. An address is no name that somebody could point elsewhere, so it is let in."""

    def __init__(self, allowed_hosts: Iterable[str] = ()) -> None:
        self._allowed = LOCAL | {_plain(host) for host in allowed_hosts}

    def check(self, headers: Headers) -> None:
        """Raise Forbidden for a host or an origin that is not allowed."""
        hosts, origins = headers.getlist("host"), headers.getlist("origin")
        host = _hostname(f"//{hosts[0]}") if len(hosts) == 1 else None
        if host is None or not (self._lets(host) or is_address(host)):
            raise Forbidden("Host: is not allowed; gateway.allowed_hosts names those that are")
        if origins and not (len(origins) == 1 and self._knows(origins[0], host)):
            raise Forbidden("Origin: is not allowed; gateway.allowed_hosts names those that are")

    def _knows(self, origin: str, host: str) -> bool:
        if not origin.lower().startswith(("http://", "https://")):
            return False
        name = _hostname(origin)
        return name is not None and (name == host or self._lets(name))

    def _lets(self, name: str) -> bool:
        return name in self._allowed or ANY in self._allowed


def _hostname(url: str) -> str | None:
    try:
        parts = urlsplit(url)
        name, _ = parts.hostname, parts.port
    except ValueError:
        return None
    if not name or parts.username is not None or parts.path or parts.query or parts.fragment:
        return None
    return _plain(name)


def _plain(name: str) -> str:
    return name.lower().rstrip(".").removeprefix("[").removesuffix("]")


DISCOVERY: Final = frozenset(
    {
        "/register",
        *(
            f"/.well-known/{name}{path}"
            for name in ("oauth-protected-resource", "oauth-authorization-server", "openid-configuration")
            for path in ("", "/mcp")
        ),
        "/mcp/.well-known/openid-configuration",
    }
)
"""Where a client whose token fails looks for somewhere to sign in (RFC 9728, RFC 8414, RFC 7591)."""

NAMED: Final = {"tools/call": "name", "resources/read": "uri"}
LISTED: Final = {"tools/list": ("tools", "name"), "resources/list": ("resources", "uri")}
FOR_ALL: Final = frozenset({"send_message", "picoclaw://conversation"})
"""What needs no more than /mcp itself; the other tools and resources are for tasks."""


def scope_of(name: object) -> str:
    """Return the scope that a tool or a resource needs."""
    if name in ASK_TOOLS:
        return "chat"
    return "mcp" if name in FOR_ALL else "tasks"


LOST: Final = "The tool server ended before it answered; the call may have taken effect."
SLOW: Final = "The tool server did not answer in time; the call may have taken effect."

SESSION: Final = Parameter(
    "Mcp-Session-Id", "The session, as the answer to initialize named it", place="header"
)


class McpApi(Api):
    """What is there at /mcp."""

    def __init__(
        self, servers: ToolServers, asks: Asks, allowed_hosts: Iterable[str], tokens: TokenBook
    ) -> None:
        self._servers = servers
        self._asks = asks
        self._tokens = tokens
        self._gate = McpGate(allowed_hosts)
        self._sessions = McpSessions()

    def open_paths(self) -> Set[str]:
        """Let anyone hear that there is nowhere to sign in: 401 there would have clients go on looking."""
        return DISCOVERY

    @operation(
        "POST",
        "/mcp",
        scope="mcp",
        reads=wire.JsonRpcRequestShape,
        parameters=[SESSION],
        also={202: None},
        errors=(404,),
        error=ErrorShape | wire.JsonRpcErrorShape,
    )
    async def serve(self, request: Request) -> JSON[wire.JsonRpcShape] | Response:
        """One message of the Model Context Protocol (Streamable HTTP)."""
        self._gate.check(request.headers)
        try:
            raw = await raw_body(request)
            # The body may have taken an hour.
            await self._tokens.check(request.scope["caller"])
            message = wire.read(raw)
            version = wire.version_of(request.headers)
            if version is not None and version not in HANDSHAKE_VERSIONS:
                return await self._stateless(request, message, version)
            return await self._in_session(request, message)
        except TooManyValues as error:
            refused = wire.Refused(wire.PARSE_ERROR, error.message)
            return JSON(refused.body(), status_code=error.status)
        except wire.Refused as refused:
            return JSON(refused.body(), status_code=wire.STATUS.get(refused.code, 400))

    @operation("DELETE", "/mcp", scope="mcp", parameters=[SESSION._replace(required=True)], errors=(404,))
    async def end(self, request: Request) -> None:
        """End an MCP session."""
        self._gate.check(request.headers)
        if not self._sessions.end(_session_id(request), request.scope["caller"]):
            raise _no_session()

    async def _stateless(
        self, request: Request, message: wire.Incoming, version: str
    ) -> JSON[wire.JsonRpcShape] | Response:
        """Serve the era without sessions (2026-07-28): each request says everything itself."""
        if message.kind == "answer":
            raise wire.Refused(wire.INVALID_REQUEST, "A client has nothing to answer here.")
        if message.kind == "request":
            wire.check_headers(message, request.headers)
        if version not in STATELESS_VERSIONS:
            known = {"supported": list(STATELESS_VERSIONS), "requested": version}
            sentence = "Unsupported protocol version"
            raise wire.Refused(wire.UNSUPPORTED_VERSION, sentence, request_id=message.id, data=known)
        if message.kind == "notification":
            return Response(status_code=202)
        if message.method == "initialize":
            raise wire.Refused(wire.METHOD_NOT_FOUND, "Method not found", request_id=message.id)
        outcome = await self._ask(request.scope["caller"], version, message)
        status = 200 if "result" in outcome else wire.STATUS.get(outcome["error"]["code"], 200)
        return JSON(wire.answer(message, outcome), status_code=status)

    async def _in_session(
        self, request: Request, message: wire.Incoming
    ) -> JSON[wire.JsonRpcShape] | Response:
        """Serve the handshake era (2025-11-25 and older)."""
        if message.kind == "request" and message.method == "initialize":
            return await self._initialize(request, message)
        caller: Caller = request.scope["caller"]
        session = self._sessions.find(_session_id(request), caller)
        if session is None:
            raise _no_session()
        if message.kind == "request":
            return JSON(wire.answer(message, await self._serve(session, caller, message)))
        if message.method == "notifications/cancelled":
            session.cancel(wire.known_id(message.params.get("requestId")))
        return Response(status_code=202)

    async def _initialize(self, request: Request, message: wire.Incoming) -> JSON[wire.JsonRpcShape]:
        """Open a session, in the version the client asks for if it is a known one."""
        if wire.SESSION_HEADER in request.headers:
            raise wire.Refused(wire.INVALID_REQUEST, "The session is open already.", request_id=message.id)
        caller: Caller = request.scope["caller"]
        wanted = message.params.get("protocolVersion")
        version = wanted if wanted in HANDSHAKE_VERSIONS else PROTOCOL
        outcome = await self._ask(caller, version, message)
        body = wire.answer(message, outcome)
        if "error" in outcome:
            return JSON(body)
        session = self._sessions.open(caller, version)
        return JSON(body, headers={"Mcp-Session-Id": session.id})

    async def _serve(self, session: McpSession, caller: Caller, message: wire.Incoming) -> wire.Outcome:
        """Return the outcome of a request that its client may cancel.

        ``caller`` as it is now: its scopes may be fewer than when it opened the session.
        """
        if message.id in session.running:
            raise wire.Refused(wire.INVALID_REQUEST, "The request id is in use.", request_id=message.id)
        with session.cancellable(message.id):
            return await self._ask(caller, session.version, message)
        return {"error": {"code": wire.REQUEST_CANCELLED, "message": "Request cancelled"}}

    async def _ask(self, caller: Caller, version: str, message: wire.Incoming) -> wire.Outcome:
        """Return what the tool server of the caller's conversation answers, or who serves asks.

        Raises Forbidden for what needs a scope that the caller has not, Unavailable when no server is free.
        """
        name = ""
        if message.method in NAMED:
            name = str(message.params.get(NAMED[message.method]))[:100]
            caller.allow(name, [scope_of(name)])
        if message.method in TASK_METHODS:
            caller.allow(message.method, ["chat"])
        if message.method in TASK_METHODS or name in ASK_TOOLS:
            return await self._asked(caller, version, message)
        token_id = None if caller.token_id == SIGNED else caller.token_id
        whose = caller.principal
        key = Key(caller.conversation_id, caller.is_main, version, token_id, whose.id, whose.terms.timezone)
        try:
            server = await self._servers.session(key)
            if message.method == "initialize":
                return {"result": server.hello}
            result = await server.request(message.method, message.params)
            if message.method in LISTED:
                items, named = LISTED[message.method]
                found = [*result[items], *(ask_listing() if items == "tools" else ())]
                result[items] = [item for item in found if caller.may(scope_of(item[named]))]
            if message.method == "server/discover" and caller.may("chat"):
                result["capabilities"]["extensions"] = {TASKS: {}}
            return {"result": result}
        except RequestRefused as refused:
            return {"error": dict(refused.error)}
        except (SessionLost, TimeoutError) as error:
            sentence = LOST if isinstance(error, SessionLost) else SLOW
            return {"error": {"code": wire.INTERNAL_ERROR, "message": sentence}}
        except NoSession as error:
            raise Unavailable(f"{error}: try again.", retry_after=1) from None

    async def _asked(self, caller: Caller, version: str, message: wire.Incoming) -> wire.Outcome:
        try:
            result = await self._asks.serve(caller, message.method, message.params)
        except RequestRefused as refused:
            return {"error": dict(refused.error)}
        return {"result": {"resultType": "complete", **result} if version in STATELESS_VERSIONS else result}


def _session_id(request: Request) -> str:
    session_id = request.headers.get(wire.SESSION_HEADER)
    if session_id is None:
        raise InvalidInput("Mcp-Session-Id: is missing; a session begins with initialize")
    return session_id


def _no_session() -> NotFound:
    return NotFound("There is no such session, or not any more: begin with initialize.")


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

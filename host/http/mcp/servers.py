"""/mcp/servers: the operator's MCP servers, how each is, and the sign-in at one of them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Annotated

import anyio.to_thread
from anyio.abc import TaskGroup
from pydantic import StringConstraints
from starlette.requests import Request

from host.http.bodies import Body
from host.http.routing import Api, operation
from host.runs.operators_servers import McpServerShape, OperatorsServers
from shared.errors import Conflict, NotFound
from shared.shapes import Shape

if TYPE_CHECKING:
    from host.mcp_clients.sign_in import Attempt


class McpServersShape(Shape):
    """The operator's servers."""

    servers: list[McpServerShape]


class SignInShape(Shape):
    """Where a person signs in."""

    address: str


class SignInRequest(Body):
    """Where the browser is to be sent afterwards."""

    redirect_uri: Annotated[str, StringConstraints(pattern=r"^https?://[!-~]+$", max_length=2048)]


class CallbackRequest(Body):
    """The address that the browser was sent back to, whole."""

    callback: Annotated[str, StringConstraints(min_length=1, max_length=8192)]


class McpServersApi(Api):
    """The routes below /mcp/servers."""

    def __init__(
        self, servers: OperatorsServers, background: TaskGroup, allowed_hosts: tuple[str, ...]
    ) -> None:
        self._servers = servers
        self._background = background
        self._allowed_hosts = frozenset(host.lower() for host in allowed_hosts)
        self._attempts: dict[str, Attempt] = {}

    @operation("GET", "/mcp/servers")
    async def list(self, request: Request) -> McpServersShape:
        """Connect to the operator's MCP servers and tell how each is."""
        return {"servers": await self._servers.look()}

    @operation("GET", "/mcp/servers/{name}", errors=(404,))
    async def get(self, request: Request) -> McpServerShape:
        """Connect to one of the operator's MCP servers and tell how it is."""
        return await self._look(request.path_params["name"])

    @operation("POST", "/mcp/servers/{name}/sign-in", errors=(404, 409))
    async def begin(self, request: Request, body: SignInRequest) -> SignInShape:
        """Begin a sign-in; one that was begun before is given up."""
        sign_in = self._servers.sign_in(request.path_params["name"])
        sign_in.check_key()
        if (before := self._attempts.pop(sign_in.name, None)) is not None:
            before.give_up()
        # Half a second of imports.
        module = await anyio.to_thread.run_sync(importlib.import_module, "host.mcp_clients.sign_in")
        attempt = self._attempts[sign_in.name] = module.Attempt(
            sign_in, body.redirect_uri, self._allowed_hosts
        )
        return {"address": await attempt.begin(self._background)}

    @operation("POST", "/mcp/servers/{name}/sign-in/callback", errors=(404, 409))
    async def end(self, request: Request, body: CallbackRequest) -> McpServerShape:
        """End a sign-in with the address that the browser was sent back to."""
        name = self._servers.sign_in(request.path_params["name"]).name
        attempt = self._attempts.get(name)
        if attempt is None:
            raise Conflict(f"No sign-in at {name} was begun at this host")
        await attempt.end(body.callback)
        del self._attempts[name]
        return await self._look(name)

    @operation("DELETE", "/mcp/servers/{name}/sign-in", errors=(404, 409))
    async def forget(self, request: Request) -> None:
        """Forget the tokens of a server."""
        sign_in = self._servers.sign_in(request.path_params["name"])
        if not await sign_in.forget():
            raise NotFound(f"There is no sign-in at {sign_in.name}")

    async def _look(self, name: str) -> McpServerShape:
        (shape,) = await self._servers.look(name)
        return shape

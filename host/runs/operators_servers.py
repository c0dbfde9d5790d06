"""The MCP servers that the operator has set up: whom each serves, the sign-in at one, how each is."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Final, Literal

import anyio

from host.agent.window import estimated
from host.mcp_clients.external import Reach, open_external
from host.mcp_clients.listed_tools import ToolPins
from host.mcp_clients.server_config import ServerConfig, SignIn, managed_servers, operators_servers
from host.ports import Trust, Workspace
from host.sandbox.client import Sandbox
from shared.errors import Conflict, NotFound
from shared.principals import Principal
from shared.settings import Settings
from shared.shapes import Shape
from shared.store.store import Store

NO_SERVER: Final = "There is no MCP server {}; one that was just added needs a restart of the host"


class McpServerShape(Shape):
    """One server as it was when it was looked at: what keeps it from being ready, or what it offers.

    ``tokens``: about what the definitions of its tools take of a request. ``signed_in``: tokens are kept.
    """

    name: str
    address: str
    state: Literal["ready", "needs_sign_in", "failing"]
    problems: list[str]
    tools: list[str]
    tokens: int
    signed_in: bool


class OperatorsServers:
    """Those of the settings and of managed-mcp.json."""

    def __init__(self, settings: Settings, store: Store, sandbox: Sandbox, reach: Reach) -> None:
        self._main = settings.main_conversation_id
        self._sandbox = sandbox
        self._reach = reach
        self._everybodys = managed_servers(settings.managed_mcp).keys()
        self.by_name = with_sign_in(operators_servers(settings), store, settings)

    def of(self, principal: Principal) -> dict[str, ServerConfig]:
        """Return those for a principal: its grants name them, or they are everybody's in the organisation."""
        granted = principal.terms.grants.get("mcp", ())
        return {
            name: config
            for name, config in self.by_name.items()
            if principal.is_operator or name in self._everybodys or name in granted
        }

    def sign_in(self, name: str) -> SignIn:
        """Return the sign-in of one of the operator's servers; raises NotFound, Conflict."""
        if name not in self.by_name:
            raise NotFound(NO_SERVER.format(name))
        sign_in = self.by_name[name].sign_in
        if sign_in is None:
            raise Conflict(f"{name} takes no sign-in: it is a program, or has its own Authorization header")
        return sign_in

    async def look(self, name: str | None = None) -> list[McpServerShape]:
        """Connect to the operator's servers, or to one, and return how each is; raises NotFound."""
        if name is not None and name not in self.by_name:
            raise NotFound(NO_SERVER.format(name))
        wanted = {key: config for key, config in self.by_name.items() if name in (None, key)}
        workspace = Workspace(self._main, self._sandbox.root, Trust.MAIN)
        spawn = partial(self._sandbox.program, workspace)
        shapes: dict[str, McpServerShape] = {}

        async def look_at(key: str, config: ServerConfig) -> None:
            # Neither a rest nor the first sight of its tools is for runs: this is only a look.
            reach = replace(self._reach, spawn=spawn, down=set(), pins=ToolPins())
            async with open_external({key: config}, reach) as found:
                specs = [spec for toolset in found.toolsets for spec in toolset.specs]
                sign_in = config.sign_in
                refused = sign_in is not None and sign_in.problem
                shapes[key] = {
                    "name": key,
                    "address": config.place,
                    "state": "ready" if found.toolsets else "needs_sign_in" if refused else "failing",
                    "problems": found.problems,
                    "tools": [spec.name for spec in specs],
                    "tokens": estimated([spec.definition for spec in specs]) if specs else 0,
                    "signed_in": sign_in is not None and bool(await sign_in.load()),
                }

        async with anyio.create_task_group() as group:
            for key, config in wanted.items():
                group.start_soon(look_at, key, config)
        return [shapes[key] for key in wanted]


def with_sign_in(
    servers: Mapping[str, ServerConfig], store: Store, settings: Settings
) -> dict[str, ServerConfig]:
    """Return the operator's servers, those over HTTP that have no credentials of their own with a sign-in."""
    return {
        name: config
        if config.type == "stdio" or "authorization" in map(str.lower, config.headers)
        else replace(config, sign_in=SignIn(name, config.url, store, settings))
        for name, config in servers.items()
    }

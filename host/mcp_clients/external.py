"""Other people's MCP servers, for the length of one run.

A server that is down, slow, or says nonsense costs its own tools and a line in ``problems``, never the run.
"""

from __future__ import annotations

import importlib
import logging
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import anyio
import anyio.to_thread

from host.mcp_clients import schemas
from host.mcp_clients.server_config import ServerConfig
from host.mcp_clients.tool_pins import ToolPins
from host.ports import ToolResult, ToolSpec
from shared import untrusted
from shared.lines import one_line

if TYPE_CHECKING:
    from mcp.client import Client

    from host.egress.addresses import AddressPolicy
    from host.mcp_clients.sdk_session import Spawn

logger = logging.getLogger("picoclaw.mcp")

CONNECT_SECONDS: Final = 10.0
CLOSE_SECONDS: Final = 2.0
NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")
"""What the Messages API takes as a tool's name."""


class Outages:
    """Which of the operator's servers were down a moment ago: not every run shall wait for them again."""

    def __init__(self, rest_seconds: float = 30.0) -> None:
        self._rest_seconds = rest_seconds
        self._until: dict[str, float] = {}

    def resting(self, config: ServerConfig) -> bool:
        """Return whether the server is not worth a try yet."""
        return anyio.current_time() < self._until.get(config.place, 0.0)

    def note(self, config: ServerConfig, *, answered: bool) -> None:
        """Remember how a try went; a request's own server is tried each time."""
        if answered:
            self._until.pop(config.place, None)
        elif config.trusted:
            self._until[config.place] = anyio.current_time() + self._rest_seconds


NO_NETWORK: Final = (
    " (commands have no network here, so one such as npx or uvx can't load a package: install it, or set "
    "tools.exec.allow_network)"
)


@dataclass(frozen=True, slots=True)
class Reach:
    """How far external servers may be reached: non-public hosts, the sandbox's door, pinned tools.

    ``connect_seconds``: longest wait for all servers together, from dialling to the list of tools.
    ``has_network``: whether programs in the sandbox reach the network.
    """

    allowed_hosts: frozenset[str] = frozenset()
    spawn: Spawn | None = None
    pins: ToolPins = field(default_factory=ToolPins)
    outages: Outages = field(default_factory=Outages)
    connect_seconds: float = CONNECT_SECONDS
    has_network: bool = True


class ExternalToolset:
    """The tools of one connected server."""

    def __init__(self, name: str, config: ServerConfig, client: Client) -> None:
        self._name = name
        self._config = config
        self._client = client
        self._tools: dict[str, str] = {}
        self.specs: list[ToolSpec] = []
        """The tools in the server's order."""

    def add(self, spec: ToolSpec, tool: str) -> None:
        """Offer a tool of the server under the spec's name."""
        self.specs.append(spec)
        self._tools[spec.name] = tool

    async def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        """Run one tool; a hung or broken server gives an error result."""
        tool = self._tools.get(name)
        if tool is None:
            return ToolResult(f"There is no tool named {name}.", is_error=True)
        seconds = self._config.timeout_ms / 1000
        sdk = _sdk()
        try:
            with anyio.fail_after(seconds):
                result: ToolResult = await sdk.called(self._client, tool, arguments, seconds)
                return result
        except TimeoutError:
            return self._fault(f"did not answer within {seconds:g} s; the call may have taken effect")
        except Exception as error:  # noqa: BLE001 - the SDK raises whatever a server makes it raise
            logger.warning("A call of an MCP server failed: %s", type(error).__name__)
            return self._fault(_reason(error))

    def _fault(self, reason: str) -> ToolResult:
        return ToolResult(f"The MCP server {self._name} {reason}.", is_error=True)


@dataclass(slots=True)
class ExternalServers:
    """What came of connecting: toolsets in the order of the entries, and a sentence per problem."""

    toolsets: list[ExternalToolset] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@asynccontextmanager
async def open_external(servers: Mapping[str, ServerConfig], reach: Reach) -> AsyncIterator[ExternalServers]:
    """Connect to all servers at once, within the reach's connect_seconds, and yield what came of it."""
    if not servers:
        yield ExternalServers()
        return
    await anyio.to_thread.run_sync(_sdk)
    ending: Exception | None = None
    async with anyio.create_task_group() as group:
        links = [_Link(name, config, reach) for name, config in servers.items()]
        for link in links:
            if not reach.outages.resting(link.config):
                group.start_soon(link.live)
            else:
                link.rest()
        with anyio.move_on_after(reach.connect_seconds):
            for link in links:
                await link.settled.wait()
        try:
            yield await _gather(links, reach)
        except Exception as error:  # noqa: BLE001 - raised again below: the group would wrap it
            ending = error
        finally:
            for link in links:
                link.leave()
    if ending is not None:
        raise ending


class _Link:
    """The one task that enters and leaves a server's session."""

    def __init__(self, name: str, config: ServerConfig, reach: Reach) -> None:
        self.name = name
        self.config = config
        self.settled = anyio.Event()
        self.toolset: ExternalToolset | None = None
        self.tools: list[Any] = []
        self.rested = False
        self.problem = f"did not answer within {reach.connect_seconds:g} s"
        self._reach = reach
        self._wanted = anyio.Event()
        self._scope = anyio.CancelScope()

    def rest(self) -> None:
        """Don't try at all, this time."""
        self.rested = True
        self.problem = "did not answer a moment ago"
        self.settled.set()

    async def live(self) -> None:
        """Connect, wait for the end of the run, leave; nothing of it raises."""
        try:
            with self._scope:
                await self._live()
        except Exception as error:  # noqa: BLE001 - the SDK raises whatever a server makes it raise
            self.problem = _reason(error)
            logger.warning("An MCP server could not be used: %s", type(error).__name__)
        finally:
            self.settled.set()

    def leave(self) -> None:
        """Let the session end, within CLOSE_SECONDS; one that never began is given up at once."""
        self._wanted.set()
        self._scope.deadline = anyio.current_time() + (CLOSE_SECONDS if self.toolset else 0.0)

    async def _live(self) -> None:
        sdk = _sdk()
        async with sdk.connected(self.config, self._policy(), self._reach.spawn) as client:
            self.tools = await sdk.listed(client)
            self.toolset = ExternalToolset(self.name, self.config, client)
            self.settled.set()
            await self._wanted.wait()

    def _policy(self) -> AddressPolicy:
        addresses = importlib.import_module("host.egress.addresses")
        allowed = frozenset(host.lower() for host in self._reach.allowed_hosts)
        policy: AddressPolicy = addresses.AddressPolicy(allowed, self.config.trusted)
        return policy


async def _gather(links: Sequence[_Link], reach: Reach) -> ExternalServers:
    """Offer the tools of who answered; a name that is taken stays with who had it first."""
    found = ExternalServers()
    taken: set[str] = set()
    for link in links:
        if not link.rested:
            reach.outages.note(link.config, answered=link.toolset is not None)
        if link.toolset is None:
            closed = link.config.type == "stdio" and not reach.has_network
            problem = f"{link.problem}{NO_NETWORK}" if closed else link.problem
            found.problems.append(f"The MCP server {link.name} {problem}; its tools are missing.")
            continue
        for tool in link.tools:
            allowed = link.config.allowed_tools
            if allowed is not None and tool.name not in allowed:
                continue
            name = f"mcp__{link.name}__{tool.name}"
            fault = _name_fault(name, taken) or schemas.fault(tool.input_schema)
            if fault is None:
                taken.add(name)
                link.toolset.add(_spec(link.name, tool), tool.name)
            else:
                shown = untrusted.defused(one_line(name[:160]))
                found.problems.append(f"The tool {shown} is not offered: {fault}.")
        if await reach.pins.changed(link.name, link.config, link.toolset.specs):
            found.problems.append(
                f"The tools of the MCP server {link.name} have changed since they were first seen."
            )
        found.toolsets.append(link.toolset)
    return found


def _spec(server: str, tool: Any) -> ToolSpec:
    reads = tool.annotations is not None and tool.annotations.read_only_hint is True
    return ToolSpec(
        name=f"mcp__{server}__{tool.name}",
        description=untrusted.description(server, tool.description or tool.title or "nothing"),
        input_schema=schemas.marked(server, tool.input_schema),
        parallel=reads,
    )


def _name_fault(name: str, taken: set[str]) -> str | None:
    if not NAME.fullmatch(name):
        return "its name is not one a model can call"
    if name in taken:
        return "its name is taken"
    return None


def _reason(error: BaseException) -> str:
    """Return what may be said of a failure: its kind, never its text, which the server can choose."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    name = type(error).__name__
    known = {
        "Forbidden": "is at an address that requests may not reach",
        "PermissionError": "is a program, and there is no sandbox to run it in",
        "SandboxFault": "is a program, and the sandbox does not hold enough to run it in",
        "TooManyTools": "lists more tools than can be offered",
        "TimeoutError": "did not answer in time",
    }
    if name in known:
        return known[name]
    return "could not be reached" if "Connect" in name else "does not speak the protocol, refused, or ended"


def _sdk() -> Any:
    # Loaded with the first external server, on a worker thread: most runs have none.
    return importlib.import_module("host.mcp_clients.sdk_session")

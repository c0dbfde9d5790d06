"""Other people's MCP servers, for the length of one run.

A server that is down, slow, or says nonsense costs its own tools and a line in ``problems``, never the run.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import anyio
import anyio.to_thread

from host.mcp_clients import listed_tools
from host.mcp_clients.listed_tools import ListedTool, ToolPins, Unmendable, mended, safe_name, shown
from host.mcp_clients.outcomes import Heard, reason
from host.mcp_clients.server_config import ServerConfig
from host.mcp_clients.toolset import ExternalToolset, Relay, Resources, Teller, sdk
from host.ports import Toolset, ToolSpec
from host.schemas import SchemaJudge, Verdict
from shared import untrusted

if TYPE_CHECKING:
    from host.egress.addresses import AddressPolicy
    from host.mcp_clients.sdk_session import Spawn

logger = logging.getLogger("picoclaw.mcp")

CONNECT_SECONDS: Final = 10.0
CLOSE_SECONDS: Final = 2.0
MOST_PROBLEMS: Final = 20
"""Tools of one server that are named when they are not offered; the rest is a number."""


NO_NETWORK: Final = (
    " (commands have no network here, so one such as npx or uvx can't load a package: install it, or set "
    "tools.exec.allow_network)"
)


@dataclass(frozen=True, slots=True)
class Reach:
    """How far external servers may be reached: non-public hosts, the sandbox's door, pinned tools.

    ``connect_seconds``: longest wait for a server that has no time of its own, from dialling to the list of
    tools. ``has_network``: whether programs in the sandbox reach the network. ``judge``: the host's; else one
    is made for the run.
    """

    allowed_hosts: frozenset[str] = frozenset()
    spawn: Spawn | None = None
    pins: ToolPins = field(default_factory=ToolPins)
    down: set[str] = field(default_factory=set)
    """Places of the operator's servers that did not answer the last time: no run waits for one of them."""
    connect_seconds: float = CONNECT_SECONDS
    has_network: bool = True
    relay: Relay = field(default_factory=Relay)
    judge: SchemaJudge | None = None
    depth: int = 0
    """How many agents have asked each other up to the run."""


class ExternalServers:
    """What came of connecting: toolsets in the order of the entries, and a sentence per problem."""

    def __init__(self, links: Sequence[_Link], reach: Reach, judge: SchemaJudge) -> None:
        self.problems: list[str] = []
        self.toolsets: list[ExternalToolset] = []
        self.relay = reach.relay
        self._links = links
        self._reach = reach
        self._judge = judge
        self._taken: set[str] = set()
        self.resources = Resources()

    async def gather(self) -> None:
        """Offer the tools of who answered; a name that is taken stays with who had it first."""
        for link in self._links:
            if link.toolset is None:
                self.problems.append(link.missing())
            else:
                await self._offer(link, link.toolset)

    async def renewed(self) -> list[Toolset]:
        """Return the toolsets that came, or whose tools changed, since the last look."""
        found: list[Toolset] = []
        for link in self._links:
            toolset = link.toolset
            if toolset is None or (toolset in self.toolsets and not link.heard.changed):
                continue
            if link.heard.changed and not await link.relisted():
                continue
            self.problems.clear()
            await self._offer(link, toolset)
            for problem in self.problems:
                self.relay.warn(problem)
            found.append(toolset)
        return [*found, self.resources] if found else []

    async def _offer(self, link: _Link, toolset: ExternalToolset) -> None:
        self._taken -= {spec.name for spec in toolset.specs}
        toolset.clear()
        left_out = []
        for raw in link.tools:
            try:
                tool = mended(raw)
                if link.config.type == "http" and (fault := sdk().header_fault(raw)) is not None:
                    raise Unmendable(shown(fault))
                if link.config.allows(tool.name):
                    self._add(
                        toolset, link.name, tool, await self._judge.schema(tool.schema, input_only=True)
                    )
            except Unmendable as fault:
                left_out.append(f"The tool {_own_name(link.name, raw)} is not offered: {fault}.")
        self.problems += left_out[:MOST_PROBLEMS]
        if len(left_out) > MOST_PROBLEMS:
            self.problems.append(
                f"The MCP server {link.name} has {len(left_out) - MOST_PROBLEMS} more of these."
            )
        self.problems += link.strange_names()
        if await self._reach.pins.changed(link.name, link.config, toolset.specs):
            self.problems.append(
                f"The tools of the MCP server {link.name} have changed since they were first seen."
            )
        if toolset not in self.toolsets:
            self.toolsets.append(toolset)
        if link.has_resources:
            self.resources.servers[link.name] = toolset

    def _add(self, toolset: ExternalToolset, server: str, tool: ListedTool, verdict: Verdict) -> None:
        prefix = f"mcp__{server}__"
        name = safe_name(prefix, tool.name)
        if name in self._taken:
            raise Unmendable("its name is taken")
        if verdict.schema_fault is not None:
            raise Unmendable(f"its input schema is not one: {shown(verdict.schema_fault)}")
        self._taken.add(name)
        spec = ToolSpec(
            name=name,
            description=untrusted.description(server, tool.description),
            input_schema=listed_tools.marked(server, tool.schema),
            parallel=tool.reads,
            title="" if name == prefix + tool.name else shown(prefix + tool.name),
        )
        toolset.add(spec, tool)


def _own_name(server: str, raw: Any) -> str:
    name = raw.get("name") if isinstance(raw, Mapping) else None
    return shown(f"mcp__{server}__{name}" if isinstance(name, str) else f"without a name of {server}")


@asynccontextmanager
async def open_external(servers: Mapping[str, ServerConfig], reach: Reach) -> AsyncIterator[ExternalServers]:
    """Connect to all servers at once, each within its time to start, and yield what came of it."""
    async with AsyncExitStack() as stack:
        judge = reach.judge
        if judge is None:
            judge = await stack.enter_async_context(SchemaJudge())
        if not servers:
            yield ExternalServers((), reach, judge)
            return
        await anyio.to_thread.run_sync(sdk)
        ending: Exception | None = None
        async with anyio.create_task_group() as group:
            links = [_Link(name, config, reach, judge) for name, config in servers.items()]
            for link in links:
                group.start_soon(link.live)
            try:
                for link in links:
                    await link.wait()
                found = ExternalServers(links, reach, judge)
                await found.gather()
                yield found
            except Exception as error:  # noqa: BLE001 - raised again below: the group would wrap it
                ending = error
            finally:
                for link in links:
                    link.leave()
        if ending is not None:
            raise ending


class _Link:
    """The one task that enters and leaves a server's session."""

    def __init__(self, name: str, config: ServerConfig, reach: Reach, judge: SchemaJudge) -> None:
        self.name = name
        self.config = config
        self.heard = Heard()
        self.toolset: ExternalToolset | None = None
        self.tools: list[Any] = []
        self.has_resources = False
        self._seconds = config.start_ms / 1000 if config.start_ms else reach.connect_seconds
        self._ready_by = anyio.current_time() + self._seconds
        self._problem = ""
        self._settled = anyio.Event()
        self._judge = judge
        self._reach = reach
        self._wanted = anyio.Event()
        self._scope = anyio.CancelScope()
        self._teller = Teller(name, reach.relay, judge)

    async def wait(self) -> None:
        """Return when the server has answered, failed, or had its time; at once if it hung the last time."""
        if self.config.place in self._reach.down:
            self._problem = "did not answer a moment ago; it is asked again beside the run"
            return
        with anyio.move_on_after(self._ready_by - anyio.current_time()):
            await self._settled.wait()
        if not self._settled.is_set() and self.config.trusted:
            self._reach.down.add(self.config.place)

    async def live(self) -> None:
        """Connect, wait for the end of the run, leave; nothing of it raises."""
        try:
            with self._scope:
                await self._live()
        except Exception as error:  # noqa: BLE001 - the SDK raises whatever a server makes it raise
            self._problem = reason(error, self.heard, self.config)
            logger.warning("An MCP server could not be used: %s", type(error).__name__)
        finally:
            self._settled.set()

    def leave(self) -> None:
        """Let the session end, within CLOSE_SECONDS; one that never began is given up at once."""
        self._wanted.set()
        self._scope.deadline = anyio.current_time() + (CLOSE_SECONDS if self.toolset else 0.0)

    def missing(self) -> str:
        """Return why the server's tools are missing."""
        hint = NO_NETWORK if self.config.type == "stdio" and not self._reach.has_network else ""
        late = f"did not answer within {self._seconds:g} s (timeout_ms in its entry gives it longer)"
        problem = self._problem or late + self.heard.noise
        return f"The MCP server {self.name} {problem}{hint}; its tools are missing."

    def strange_names(self) -> list[str]:
        """Return a sentence if the entry allows tools that the server doesn't have."""
        listed = [raw.get("name") for raw in self.tools if isinstance(raw, Mapping)]
        unknown = sorted(name for name in self.config.allowed_tools or () if name not in listed)
        if self.config.allowed_tools is not None and not self.config.allowed_tools:
            return [f"No tool of the MCP server {self.name} is used: its allowed_tools is empty."]
        if not unknown:
            return []
        return [f"The MCP server {self.name} has no tool {', '.join(map(shown, unknown))} (allowed_tools)."]

    async def relisted(self) -> bool:
        """Ask for the list of tools again, which has changed."""
        assert self.toolset is not None  # noqa: S101 - there is a list only of who answered
        try:
            with anyio.fail_after(self._seconds):
                self.tools = await sdk().listed(self.toolset.client, self.heard)
        except Exception as error:  # noqa: BLE001 - see live
            self.heard.changed = False
            self._teller.warn(f"has other tools now, and {reason(error, self.heard, self.config)}")
            return False
        return True

    async def _live(self) -> None:
        session = sdk().connected(self.config, self._policy(), self._reach.spawn, self.heard, self._teller)
        async with session as client, anyio.create_task_group() as group:
            self.tools = await sdk().listed(client, self.heard)
            self.has_resources = client.server_capabilities.resources is not None
            self.toolset = ExternalToolset(
                self.config, client, self.heard, self._teller, self._judge, self._reach.depth
            )
            self._reach.down.discard(self.config.place)
            self._settled.set()
            group.start_soon(sdk().follow, client, self.heard)
            await self._wanted.wait()
            group.cancel_scope.cancel()

    def _policy(self) -> AddressPolicy:
        addresses = importlib.import_module("host.egress.addresses")
        allowed = frozenset(host.lower() for host in self._reach.allowed_hosts)
        policy: AddressPolicy = addresses.AddressPolicy(allowed, self.config.trusted)
        return policy

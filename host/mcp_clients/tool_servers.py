"""The host's own tool server, one process per conversation, opened when it is first needed."""

from __future__ import annotations

import logging
import socket
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import anyio
from anyio.abc import TaskGroup

from host.mcp_clients.json_rpc import JsonRpcClient, RequestRefused, SessionLost, cut
from host.mcp_clients.zygote import Key, StoreAccess, ToolServerPlace, Zygote
from host.ports import ToolResult, ToolSpec
from shared.principals import OPERATOR

logger = logging.getLogger("picoclaw.mcp")

PREFIX: Final = "mcp__picoclaw__"
PROTOCOL: Final = "2025-11-25"
HANDSHAKE_VERSIONS: Final = ("2024-11-05", "2025-03-26", "2025-06-18", PROTOCOL)
STATELESS_VERSIONS: Final = ("2026-07-28",)
_ME: Final = {"name": "picoclaw-host", "version": "1"}
CALL_SECONDS: Final = 30.0
START_SECONDS: Final = 15.0
"""Birth to answered handshake; most of it is for the zygote's own first import."""


class NoSession(Exception):
    """There is no tool server for a call, of which nothing was done; says why."""


class ToolServerSession:
    """One tool server process and the wire to it."""

    def __init__(self) -> None:
        self._client: JsonRpcClient | None = None
        self._starting = anyio.Lock()
        self.used_at = anyio.current_time()
        self.hello: dict[str, Any] = {}

    @property
    def lost(self) -> bool:
        """Return whether it can't be used any more."""
        return self._client is not None and self._client.lost

    @property
    def busy(self) -> bool:
        """Return whether it is starting or a call is waiting for its answer."""
        return self._starting.locked() or (self._client is not None and self._client.busy)

    async def start(self, zygote: Zygote, key: Key) -> None:
        """Be born and shake hands, once; raises SessionLost, RequestRefused, TimeoutError."""
        if self._client is not None:
            return
        async with self._starting:
            if self._client is None:
                peer = await zygote.bear(key)
                # Takes no time, and cut in two it would leave a socket, and so a process, without an owner.
                with anyio.CancelScope(shield=True):
                    client = self._client = await JsonRpcClient.over(peer)
                try:
                    self.hello = await _handshake(client, key.version)
                except BaseException:
                    client.close()
                    # Whoever waits for the same start then makes it, instead of finding a closed one.
                    self._client = None
                    raise

    async def request(self, method: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return a request's result; raises SessionLost, RequestRefused, TimeoutError."""
        if self._client is None:
            raise SessionLost
        self.used_at = anyio.current_time()
        try:
            return await self._client.request(method, params, CALL_SECONDS)
        finally:
            self.used_at = anyio.current_time()

    def close(self) -> None:
        """Let the process end."""
        if self._client is not None:
            self._client.close()


async def _handshake(client: JsonRpcClient, version: str) -> dict[str, Any]:
    """Say in which version the session goes on; its first request settles that for good."""
    if version in STATELESS_VERSIONS:
        named = {"protocolVersion": version, "clientInfo": _ME, "clientCapabilities": {}}
        meta = {f"io.modelcontextprotocol/{name}": value for name, value in named.items()}
        return await client.request("server/discover", {"_meta": meta}, START_SECONDS)
    hello = {"protocolVersion": version, "capabilities": {}, "clientInfo": _ME}
    answer = await client.request("initialize", hello, START_SECONDS)
    client.notify("notifications/initialized")
    return answer


class ToolServers:
    """All tool servers of one host. Enter it at start; it delays nothing."""

    def __init__(
        self,
        *,
        db_path: Path,
        store_dir: Path | None,
        timezone: str,
        max_sessions: int = 256,
        kept_sessions: int = 64,
        idle_seconds: float = 120,
        task_quota: int = 100,
        access: StoreAccess | None = None,
    ) -> None:
        place = ToolServerPlace(db_path.absolute(), store_dir, timezone, task_quota, access)
        self.zygote = Zygote(place, self._visited)
        self.visited: Callable[[Mapping[str, Any], socket.socket], Coroutine[Any, Any, None]] | None = None
        """Serves a request of an agent beside this host, which says who it is, and closes the socket."""
        self._max_sessions = max_sessions
        self._kept_sessions = kept_sessions
        self._idle_seconds = idle_seconds
        self.sessions: OrderedDict[Key, ToolServerSession] = OrderedDict()
        self._group: TaskGroup

    async def __aenter__(self) -> ToolServers:
        self._group = await anyio.create_task_group().__aenter__()
        self._group.start_soon(self.zygote.run)
        self._group.start_soon(self._close_idle)
        return self

    async def __aexit__(self, *_: object) -> None:
        for session in self.sessions.values():
            session.close()
        self.sessions.clear()
        self.zygote.close()
        self._group.cancel_scope.cancel()
        # The group must not wrap what ends the host: it has nothing to do with it.
        await self._group.__aexit__(None, None, None)

    def _visited(self, who: Mapping[str, Any], peer: socket.socket) -> None:
        if self.visited is None:
            peer.close()
        else:
            self._group.start_soon(self.visited, who, peer)

    def toolset(
        self,
        conversation_id: str,
        *,
        is_main: bool,
        principal_id: str = OPERATOR,
        timezone: str | None = None,
    ) -> ToolServerToolset:
        """Return the tools bound to one conversation; no session is started yet."""
        key = Key(conversation_id, is_main, PROTOCOL, None, principal_id, timezone)
        return ToolServerToolset(self, key, tool_specs(is_main, principal_id == OPERATOR))

    async def forget(self, conversation_id: str) -> None:
        """Close the conversation's sessions, because it is being deleted."""
        for key in [key for key in self.sessions if key.conversation_id == conversation_id]:
            self.sessions.pop(key).close()

    async def session(self, key: Key) -> ToolServerSession:
        """Return an open session; raises RequestRefused, NoSession."""
        session = self.sessions.get(key)
        if session is None or session.lost:
            self._make_room()
            session = self.sessions[key] = ToolServerSession()
        self.sessions.move_to_end(key)
        try:
            await session.start(self.zygote, key)
        except BaseException as error:
            if self.sessions.get(key) is session and not session.busy:
                del self.sessions[key]
            if isinstance(error, SessionLost | OSError):  # TimeoutError is one
                raise NoSession("The tool server could not be started, and nothing was done") from None
            raise
        return session

    def _make_room(self) -> None:
        """Close the longest unused session if enough are kept; a busy one is never closed for another."""
        if len(self.sessions) < min(self._kept_sessions, self._max_sessions):
            return
        for key, session in self.sessions.items():
            if not session.busy:
                session.close()
                del self.sessions[key]
                return
        if len(self.sessions) >= self._max_sessions:
            raise NoSession("All tool servers are busy")

    async def _close_idle(self) -> None:
        while True:
            await anyio.sleep(max(self._idle_seconds / 10, 0.05))
            oldest = anyio.current_time() - self._idle_seconds
            for key, session in list(self.sessions.items()):
                if session.lost or (session.used_at < oldest and not session.busy):
                    session.close()
                    del self.sessions[key]


@dataclass(frozen=True, slots=True)
class ToolServerToolset:
    """The tool server's tools for one conversation, fixed at birth; the first call starts the session."""

    _servers: ToolServers
    _key: Key
    specs: tuple[ToolSpec, ...]

    async def open(self) -> None:
        """Start the session, so that the first call needn't wait; a failure shows at the call."""
        try:
            await self._servers.session(self._key)
        except (RequestRefused, NoSession) as error:
            logger.warning("No tool server: %s", error)

    async def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        """Run one tool in the conversation's tool server."""
        if not name.startswith(PREFIX):
            return ToolResult(f"There is no tool named {name}.", is_error=True)
        try:
            session = await self._servers.session(self._key)
            wanted = {"name": name.removeprefix(PREFIX), "arguments": arguments}
            return _tool_result(await session.request("tools/call", wanted))
        except SessionLost:
            return _fault("The tool server ended before it answered; the call may have taken effect.")
        except TimeoutError:
            return _fault(f"No answer within {CALL_SECONDS:g} s; the call may have taken effect.")
        except NoSession as error:
            return _fault(f"{error}; try again.")
        except RequestRefused as error:
            return _fault(str(error))


def _fault(sentence: str) -> ToolResult:
    return ToolResult(sentence, is_error=True)


def _tool_result(result: Mapping[str, Any]) -> ToolResult:
    texts = [block["text"] for block in result.get("content", ()) if block.get("type") == "text"]
    return ToolResult(cut("\n".join(texts)), is_error=bool(result.get("isError")))


@cache
def tool_specs(is_main: bool, is_operator: bool) -> tuple[ToolSpec, ...]:
    """Return the tool server's tools, of the main conversation or of any other."""
    # Only now: building the models costs a few hundredths of a second that a host's start can do without.
    from shared.tool_contract import tool_declarations

    return tuple(
        ToolSpec(
            PREFIX + tool.name,
            tool.description,
            tool.input_schema,
            # Writes keep the order the model gave them: messages are read one after the other.
            parallel=tool.read_only,
            read_only=tool.read_only,
            speaks=tool.speaks,
        )
        for tool in tool_declarations(is_main=is_main, is_operator=is_operator).values()
    )

"""The sessions that MCP clients of the handshake era open over HTTP: bounded, and their opener's alone."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import anyio

from host.http.callers import Caller
from host.http.mcp.wire import RequestId
from shared.clock import monotonic_ms
from shared.ids import MCP_SESSION, new_id

MOST: Final = 1024
MOST_OF_A_CALLER: Final = 64
IDLE_MS: Final = 30 * 60 * 1000


@dataclass(slots=True)
class McpSession:
    """One session: no process and no task of its own, the tool server is its conversation's."""

    id: str
    caller: Caller
    version: str
    used_at: float
    running: dict[RequestId | None, anyio.CancelScope] = field(default_factory=dict)

    @contextmanager
    def cancellable(self, request_id: RequestId | None) -> Iterator[None]:
        """Let the block be cancelled by the request's id; it then ends without an exception."""
        with anyio.CancelScope() as scope:
            self.running[request_id] = scope
            try:
                yield
            finally:
                del self.running[request_id]

    def cancel(self, request_id: RequestId | None) -> None:
        """Cancel a running request; any other id is nothing."""
        scope = self.running.get(request_id)
        if scope is not None:
            scope.cancel()


class McpSessions:
    """Opens, finds and ends sessions. The longest unused one makes room, its caller's own first."""

    def __init__(
        self,
        *,
        most: int = MOST,
        most_of_a_caller: int = MOST_OF_A_CALLER,
        idle_ms: float = IDLE_MS,
        clock: Callable[[], float] = monotonic_ms,
    ) -> None:
        self._most = most
        self._most_of_a_caller = most_of_a_caller
        self._idle_ms = idle_ms
        self._clock = clock
        self._open: OrderedDict[str, McpSession] = OrderedDict()

    def __len__(self) -> int:
        return len(self._open)

    def open(self, caller: Caller, version: str) -> McpSession:
        """Open a session for the caller."""
        self._make_room(caller)
        session = McpSession(new_id(MCP_SESSION), caller, version, self._clock())
        self._open[session.id] = session
        return session

    def find(self, session_id: str, caller: Caller) -> McpSession | None:
        """Return the caller's session, now the last used; None: absent, expired, or somebody else's."""
        session = self._open.get(session_id)
        if session is None or session.caller != caller:
            return None
        if self._expired(session):
            del self._open[session_id]
            return None
        session.used_at = self._clock()
        self._open.move_to_end(session_id)
        return session

    def end(self, session_id: str, caller: Caller) -> bool:
        """End the caller's session; False if there is none."""
        return self.find(session_id, caller) is not None and self._open.pop(session_id, None) is not None

    def _expired(self, session: McpSession) -> bool:
        return not session.running and session.used_at < self._clock() - self._idle_ms

    def _make_room(self, caller: Caller) -> None:
        """Forget what is expired, then the longest unused: the order of the table is that of use."""
        for session in list(self._open.values()):
            if not self._expired(session):
                break
            del self._open[session.id]
        own = [session.id for session in self._open.values() if session.caller == caller]
        if len(own) >= self._most_of_a_caller:
            del self._open[own[0]]
        elif len(self._open) >= self._most:
            self._open.popitem(last=False)

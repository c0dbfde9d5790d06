"""The owner of the zygote: one warm process that forks a tool server per session (see docs/mcp.md)."""

import logging
import socket
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import anyio

from shared import jsons
from shared.children import begun
from shared.principals import OPERATOR
from shared.processes import terminate

logger = logging.getLogger("picoclaw.mcp")

_WARM: Final = b"warm"
_LONGEST_PACKET: Final = 4096

START_AFTER_S: Final = 1.0
"""From the host's start to the process's, unless a session is wanted before: the host's own start and the
model's client need the processors more."""
STOP_SECONDS: Final = 8.0
"""How long the zygote and its sessions may take to end; longer than their own grace."""
RESTART_SECONDS: Final = (0.0, 0.1, 0.5, 2.0, 5.0)
"""Pauses before the first, second, ... restart in a row."""
STEADY_SECONDS: Final = 30.0
"""A zygote that lived this long starts the row anew."""


class Key(NamedTuple):
    """What a tool server is born with: whom it acts for, in which version, by which token if by one.

    ``timezone``: its principal's own, where that has one.
    """

    conversation_id: str
    is_main: bool
    version: str
    token_id: str | None = None
    principal_id: str = OPERATOR
    timezone: str | None = None


StoreAccess = Callable[..., str | None]
"""See ``Store.tool_access``."""


@dataclass(frozen=True, slots=True)
class ToolServerPlace:
    """What every tool server of this host is born with, besides its conversation.

    ``access``: how one reaches a store that several hosts share; else it is the database at the path.
    """

    db_path: Path
    store_dir: Path | None
    timezone: str
    task_quota: int
    access: StoreAccess | None = None

    def environment(self) -> dict[str, str]:
        """Return the whole environment of the zygote: nothing of the host's own gets in."""
        environment = {
            "PICOCLAW_DB_PATH": str(self.db_path),
            "MAX_TASKS_PER_CONVERSATION": str(self.task_quota),
            "TZ": self.timezone,
            "TMPDIR": tempfile.gettempdir(),
            "LANG": "C.UTF-8",
            "PYDANTIC_DISABLE_PLUGINS": "__all__",
        }
        if self.access is not None:
            environment["PICOCLAW_SHARED_STORE"] = "1"
        if self.store_dir is not None:
            environment["PICOCLAW_STORE_DIR"] = str(self.store_dir)
        return environment


class Zygote:
    """Runs the process, starts it again when it dies, and passes requests for sessions to it."""

    def __init__(
        self, place: ToolServerPlace, visited: Callable[[Mapping[str, Any], socket.socket], None]
    ) -> None:
        self._place = place
        self._visited = visited
        self._warmed = anyio.Event()
        self._closing = False
        self.pid: int | None = None
        self._wanted = anyio.Event()
        # Requests wait in the socket while the process is still importing.
        self._control, self._inherited = _pair()

    async def run(self) -> None:
        """Keep the process alive until ``close`` or cancellation; returns when it has ended."""
        failures = 0
        with anyio.move_on_after(START_AFTER_S):
            await self._wanted.wait()
        while not self._closing:
            started = anyio.current_time()
            try:
                await self._live()
            except OSError as error:
                logger.error("The tool server process could not be started: %s", error.strerror)
            failures = 0 if anyio.current_time() - started > STEADY_SECONDS else failures + 1
            if self._closing:
                return
            logger.warning("The tool server process ended unexpectedly and is started again")
            with suppress(OSError):  # then at the next start
                self._control, self._inherited = _pair()
            await anyio.sleep(RESTART_SECONDS[min(failures, len(RESTART_SECONDS) - 1)])

    async def bear(self, key: Key) -> socket.socket:
        """Return a socket to a new tool server that acts for the key's conversation, and for nothing else.

        With a token it writes nothing once that has ended.
        """
        self._wanted.set()
        ours, theirs = socket.socketpair()
        with theirs:
            wanted = key._asdict() | {"timezone": key.timezone or self._place.timezone}
            del wanted["version"]
            if self._place.access is not None:
                whose = {name: wanted[name] for name in ("conversation_id", "is_main", "principal_id")}
                wanted["access"] = self._place.access(**whose)
            try:
                await self._send(jsons.dump_bytes(wanted), theirs)
            except BaseException:
                ours.close()
                raise
        ours.setblocking(False)
        return ours

    async def ready(self) -> None:
        """Return once the process has finished importing."""
        self._wanted.set()
        with suppress(OSError):  # it is gone
            self._control.send(_WARM)
        await self._warmed.wait()

    def close(self) -> None:
        """Let the process end: it sees its control socket close."""
        self._closing = True
        self._close_control()
        self._inherited.close()

    def _close_control(self) -> None:
        if self._control.fileno() >= 0:
            anyio.notify_closing(self._control)
            self._control.close()

    async def _hear(self) -> None:
        """Take in what the process says: that it is warm, or that somebody has a word for the host."""
        control = self._control
        with suppress(anyio.ClosedResourceError, OSError):
            while True:
                await anyio.wait_readable(control)
                packet, fds, _, _ = socket.recv_fds(control, _LONGEST_PACKET, 1)
                if not packet:
                    return
                if fds:
                    self._visited(jsons.loads(packet), socket.socket(fileno=fds[0]))
                else:
                    self._warmed.set()

    async def _send(self, packet: bytes, theirs: socket.socket) -> None:
        while True:
            control = self._control
            try:
                socket.send_fds(control, [packet], [theirs.fileno()])
            except BlockingIOError:
                await anyio.wait_writable(control)
            else:
                return

    async def _live(self) -> None:
        """Be the owner of one process: from its start to its end, also when cancelled. Raises OSError."""
        if self._inherited.fileno() < 0:
            self._control, self._inherited = _pair()
        with self._inherited:
            process = await begun("mcp_server.zygote", self._inherited, self._place.environment())
        self.pid = process.pid
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._hear)
                await process.wait()
                group.cancel_scope.cancel()
        finally:
            self.pid = None
            self._close_control()
            await terminate(process, STOP_SECONDS)


def _pair() -> tuple[socket.socket, socket.socket]:
    ours, inherited = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    return ours, inherited

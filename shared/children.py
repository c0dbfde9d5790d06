"""Processes of the host's own, each at the other end of a socket: begun when wanted, anew when they ended.

Both sides say frames (``shared.processes``). A process ends with its socket.
"""

import asyncio
import gc
import logging
import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final, Generic, TypeVar, cast

import anyio
from anyio.abc import Process

from shared.processes import Early, Frames, how_to_begin, leave_the_end_to_the_host, not_dumpable, terminate

STOP_S: Final = 5.0
"""How long a process may take to end once its socket is closed."""
SOCKET_BYTES: Final = 64 * 1024
"""What waits in the socket: what the host's event loop takes in at once is no more than that."""


async def begun(
    module: str, theirs: socket.socket, environment: Mapping[str, str], *arguments: str
) -> Process:
    """Start ``python -m module`` with its side of a socket; raises OSError."""
    command, options = how_to_begin(module, theirs, environment, *arguments)
    return await anyio.open_process(command, **options)


class Stopping(ConnectionError):
    """No process is begun any more."""


class Link(asyncio.Protocol):
    """One side of a socket between the host and a process; ``lost`` once the other one is ``closed``."""

    def __init__(self, most: int, closed: Callable[[], None] = lambda: None) -> None:
        self.lost = False
        self._closed = closed
        self.frames = Frames(most)
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport (asyncio's call)."""
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of what is in flight (asyncio's call)."""
        self.lose()

    def lose(self) -> None:
        """Let go of what is in flight; called once or more."""
        self.lost = True
        self._closed()


L = TypeVar("L", bound=Link)


class Child(Generic[L]):
    """One process at a time, ``python -m module``. ``make``: the host's side of its socket.

    ``reached`` is the last one's, which may be lost. ``early``: the first one, if it was begun already.
    """

    def __init__(
        self, module: str, make: Callable[[], L], *arguments: str, early: Early | None = None
    ) -> None:
        self._module = module
        self._make = make
        self._arguments = arguments
        self._starting = anyio.Lock()
        self._process: Process | Early | None = None
        self._early = early
        self.reached: L | None = None
        self._closed = False

    @property
    def pid(self) -> int | None:
        """The process's id while there is one."""
        return None if self._process is None else self._process.pid

    def environment(self) -> dict[str, str]:
        """Return the variables that the process gets."""
        return {"PYDANTIC_DISABLE_PLUGINS": "__all__"}

    async def link(self) -> L:
        """Return the way to the process, which is started if there is none; raises OSError, Stopping."""
        while self.reached is None or self.reached.lost:
            # Cut in two a start would leave a process without an owner.
            async with self._starting:
                with anyio.CancelScope(shield=True):
                    if self.reached is None or self.reached.lost:
                        self.reached = await self.start()
        return self.reached

    def kill(self) -> None:
        """End a process that is stuck, and let go of what is in flight."""
        if self._process is not None and self.reached is not None:
            with suppress(ProcessLookupError):
                self._process.kill()
            self.reached.transport.abort()
            self.reached.lose()

    async def aclose(self) -> None:
        """Have the process end, and wait for that."""
        self._closed = True
        async with self._starting:
            await self._end()

    async def start(self) -> L:
        """Start the process anew; ``link`` does it."""
        if self._process is not None:
            logging.getLogger("picoclaw").warning("%s ended unexpectedly: it is started again", self._module)
            await self._end()
        if self._closed:
            raise Stopping("the host is stopping")
        if self._early is not None:
            self._process, ours, self._early = self._early, self._early.ours, None
        else:
            ours = await self._begun()
        ours.setblocking(False)
        _, link = await asyncio.get_running_loop().create_connection(self._make, sock=ours)
        return link

    async def _begun(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = await begun(self._module, theirs, self.environment(), *self._arguments)
            except OSError:
                ours.close()
                raise
        return ours

    async def _end(self) -> None:
        if self.reached is not None:
            self.reached.transport.close()
        if self._process is not None:
            process, self._process = self._process, None
            await terminate(process, STOP_S)


def serve(make: Callable[[Callable[[], None]], Link]) -> None:
    """Be such a process, on the socket that is descriptor ``argv[1]``, until the host closes it.

    ``make`` is given what ends the process; what is under way then ends with it.
    """
    import uvloop  # not at the top: the host itself may run without it

    not_dumpable()
    leave_the_end_to_the_host()
    logging.basicConfig(level=logging.ERROR)
    gc.freeze()  # what was imported stays
    uvloop.run(_served(socket.socket(fileno=int(sys.argv[1])), make))


async def _served(control: socket.socket, make: Callable[[Callable[[], None]], Link]) -> None:
    ended = asyncio.Event()
    control.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
    await asyncio.get_running_loop().create_connection(lambda: make(ended.set), sock=control)
    await ended.wait()

"""Serving: uvicorn on a socket, the host's parts around it, one orderly end."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import cast

import anyio
from starlette.types import ASGIApp
from uvicorn.config import Config, HTTPProtocolType
from uvicorn.server import Server

from host.app import App
from host.base import Base, open_base
from host.http.connections import BACKLOG, Connection, Connections, raise_descriptor_limit
from shared.errors import Misconfigured, PicoError, StoreError
from shared.ids import new_id
from shared.settings import Settings
from shared.settings.proxies import peers
from shared.store.store import Store

logger = logging.getLogger("picoclaw.host")

HOPELESS = 2
SWITCH_S = 0.0005
"""How long a worker thread waits at most for the interpreter while the event loop is busy. At Python's 5 ms a
thread that ships the store's log needs seconds, holds up every writer meanwhile, and leases run out."""

HANGS_S = 8.0
"""A volume that hasn't answered for so many seconds doesn't keep a host that is told to stop."""

FIRST_ANSWER_S = 0.01
"""What it takes to answer /health once, when all is imported that it needs."""

_M_ARENA_MAX = -8


class _Server(Server):
    """uvicorn without its own signal handling: ours drains first, while /health still answers."""

    def __init__(
        self, app: ASGIApp, bound: socket.socket, proxies: tuple[str, ...], book: Connections
    ) -> None:
        super().__init__(_config(app, proxies, book))
        self._bound = bound
        self._started = anyio.Event()
        self._ended = anyio.Event()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._bound.getsockname()[1])

    async def answer(self) -> None:
        """Answer on the socket until ``end``."""
        await self.serve([self._bound])
        self._ended.set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen (uvicorn calls it)."""
        await super().startup(sockets)
        self._started.set()

    async def started_to_answer(self) -> None:
        """Return when requests that waited for it have been taken."""
        await self._started.wait()
        await anyio.sleep(FIRST_ANSWER_S)

    async def end(self) -> None:
        """Take no more requests; returns when the last is answered."""
        self.should_exit = True
        await self._ended.wait()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to the host."""
        yield


def run(settings: Settings) -> int:
    """Serve until a signal or POST /control/stop; return the exit code.

    0: it was stopped. 1: it could not go on, and another try may succeed. 2: only the operator can mend it.
    """
    sys.setswitchinterval(SWITCH_S)
    _share_one_arena()
    try:
        bound = _bind(settings)
    except OSError as error:
        logger.error("Cannot listen on %s:%d: %s", settings.host, settings.port, error.strerror)
        return 1
    try:
        return anyio.run(serve, settings, bound, backend_options={"use_uvloop": True})
    except (StoreError, PicoError) as error:
        logger.error("%s", error)
        hopeless = error.hopeless if isinstance(error, StoreError) else isinstance(error, Misconfigured)
        return HOPELESS if hopeless else 1
    finally:
        bound.close()


def _share_one_arena() -> None:
    """Have worker threads allocate where the event loop does (mallopt(3)): one at a time runs anyway, and
    arenas of their own hold 5 MiB.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_ARENA_MAX, 1)


async def serve(settings: Settings, bound: socket.socket) -> int:
    """Open the host, answer on the socket, and close everything in order."""
    descriptors = raise_descriptor_limit()
    stopping = anyio.Event()

    def stop(reason: str) -> None:
        if not stopping.is_set():
            logger.info("Stopping", extra={"reason": reason})
            stopping.set()

    for warning in (*settings.warnings, *settings.channels.without_owners()):
        logger.warning("%s", warning)
    fault: PicoError | StoreError | None = None
    async with open_base(settings, new_id("host"), stop) as base:
        app = App(base)
        book = Connections(descriptors, base.metrics)
        server = _Server(app, bound, settings.gateway.trusted_proxies, book)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_on_signals, stop)
            tasks.start_soon(server.answer)
            tasks.start_soon(app.probe_when_asked)
            try:
                await _live(base, app, server, stopping)
            except (PicoError, StoreError) as error:
                fault = error  # raised outside of the group, which would wrap it
            tasks.cancel_scope.cancel()
    if fault is not None:
        raise fault
    logger.info("Stopped")
    return 0


async def _live(base: Base, app: App, server: _Server, stopping: anyio.Event) -> None:
    """Open the rest of the host behind what answers already, and stay until it is to stop."""
    # In a thread, so that /health is answered meanwhile, and by whom it was asked already, at once.
    await server.started_to_answer()
    await anyio.to_thread.run_sync(import_module, "host.routes")
    from host.parts import open_host
    from host.routes import host_routes

    async with open_host(base) as host:
        app.open(host, host_routes(host, app.tokens))
        # What is there by now stays and is not looked at again: a full collection, which stops everything,
        # takes 20 instead of 50 ms.
        gc.freeze()
        gc.enable()
        logger.info("Listening", extra={"host": base.settings.host, "port": server.port})
        await stopping.wait()
        grace_s = base.settings.stop_grace_ms / 1000
        threading.Thread(target=_end_on_a_hanging_volume, args=(base.store, grace_s), daemon=True).start()
        # While the runs come to their end the socket stays open: /health and streams go on.
        await host.runs.drain()
        await server.end()


def _end_on_a_hanging_volume(store: Store, grace_s: float) -> None:
    """End a process that was told to stop and whose threads the kernel doesn't give back."""
    time.sleep(grace_s + HANGS_S)
    while store.silent_s() < HANGS_S:
        time.sleep(0.1)
    logger.error("STORE_DIR does not answer: ending without it; what was acknowledged is on it")
    # The descriptors stay open as long as the kernel keeps a thread: children are told by the connections.
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError), socket.socket(fileno=os.dup(int(descriptor.name))) as connection:
            connection.shutdown(socket.SHUT_RDWR)
    os._exit(1)


async def _on_signals(stop: Callable[[str], None]) -> None:
    numbers = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup(1)
        numbers.append(signal.SIGHUP)
    with anyio.open_signal_receiver(*numbers) as signals:
        async for number in signals:
            stop(signal.Signals(number).name)


def _config(app: ASGIApp, proxies: tuple[str, ...], book: Connections) -> Config:
    return Config(
        app,
        http=cast(HTTPProtocolType, partial(Connection, book)),
        log_config=None,
        access_log=False,
        server_header=False,
        # From anybody else than these X-Forwarded-For is worth nothing: whoever calls could name any
        # address there and so escape the limit on failures. From these it is read from its right end.
        proxy_headers=bool(proxies),
        forwarded_allow_ips=peers(proxies),
        lifespan="off",
        ws="none",
        backlog=book.backlog,
        timeout_keep_alive=75,
        # The runs are over when this begins; a reader who doesn't read must not keep the host alive.
        timeout_graceful_shutdown=5,
    )


def _bind(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((settings.host, settings.port))
        bound.listen(BACKLOG)
        bound.set_inheritable(False)
    except OSError:
        bound.close()
        raise
    return bound

"""Serving: uvicorn on a socket, the host's parts around it, one orderly end."""

from __future__ import annotations

import ctypes
import gc
import logging
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import anyio
import uvicorn
from starlette.types import ASGIApp

from host.app import build_app
from host.parts import open_host
from shared.errors import Misconfigured, PicoError, StoreError, StoreVersion
from shared.ids import new_id
from shared.settings import Settings
from shared.settings.proxies import peers

logger = logging.getLogger("picoclaw.host")

BACKLOG = 2048
HOPELESS = 2
SWITCH_S = 0.0005
"""How long a worker thread waits at most for the interpreter while the event loop is busy. At Python's 5 ms a
thread that ships the store's log needs seconds, holds up every writer meanwhile, and leases run out."""


_M_ARENA_MAX = -8


class _Server(uvicorn.Server):
    """uvicorn without its own signal handling: ours drains first, while /health still answers."""

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
        return HOPELESS if isinstance(error, Misconfigured | StoreVersion) else 1
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
    stopping = anyio.Event()

    def stop(reason: str) -> None:
        if not stopping.is_set():
            logger.info("Stopping", extra={"reason": reason})
            stopping.set()

    for warning in settings.warnings:
        logger.warning("%s", warning)
    async with open_host(settings, new_id("host"), stop) as host:
        server = _Server(_config(build_app(host), settings.gateway.trusted_proxies))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_on_signals, stop)
            tasks.start_soon(_answer, server, bound, tasks.cancel_scope)
            # What is there by now stays and is not looked at again: a full collection, which stops
            # everything, takes 20 instead of 50 ms.
            gc.freeze()
            gc.enable()
            logger.info("Listening", extra={"host": settings.host, "port": bound.getsockname()[1]})
            await stopping.wait()
            # While the runs come to their end the socket stays open: /health and streams go on.
            await host.runs.drain()
            server.should_exit = True
    logger.info("Stopped")
    return 0


async def _answer(server: uvicorn.Server, bound: socket.socket, scope: anyio.CancelScope) -> None:
    await server.serve([bound])
    scope.cancel()


async def _on_signals(stop: Callable[[str], None]) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for number in signals:
            stop(signal.Signals(number).name)


def _config(app: ASGIApp, proxies: tuple[str, ...]) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        # From anybody else than these X-Forwarded-For is worth nothing: whoever calls could name any
        # address there and so escape the limit on failures. From these it is read from its right end.
        proxy_headers=bool(proxies),
        forwarded_allow_ips=peers(proxies),
        lifespan="off",
        ws="none",
        backlog=BACKLOG,
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

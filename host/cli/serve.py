"""``picoclaw serve``: the host, from the environment's settings."""

import asyncio
import ctypes
import errno
import gc
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final, NoReturn, cast

import anyio
from starlette.types import ASGIApp
from uvicorn.config import Config, HTTPProtocolType
from uvicorn.server import Server

from host.cli.start import HANGS_S, HOPELESS, UNGUARDED, guessable, lacks_temporary_files, stop, take_settings
from host.http.connections import BACKLOG, Connection, Connections, most_connections
from host.models.access import deprecated
from host.models.process import ModelProcess
from shared.errors import Misconfigured, PicoError, StoreError
from shared.logging import configure
from shared.processes import Early, hangs, not_dumpable
from shared.redact import Redactor
from shared.settings import Settings
from shared.settings.secret_values import secret_values
from shared.settings.sections import peers
from shared.store.store import Store

logger = logging.getLogger("picoclaw.host")

SWITCH_S: Final = 0.0005
"""How long a worker thread waits at most for the interpreter while the event loop is busy. At Python's 5 ms a
thread that ships the store's log needs seconds, holds up every writer meanwhile, and leases run out."""

_M_ARENA_MAX: Final = -8


class CannotListen(Exception):
    """The address can't be had. ``code`` is 1 where another program has it, which may end by itself."""

    def __init__(self, settings: Settings, error: OSError) -> None:
        place = f"Cannot listen: port {settings.port} on {settings.host}"
        taken = error.errno == errno.EADDRINUSE
        super().__init__(
            f"{place} is in use by another program; stop that one, or set PORT to another"
            if taken
            else f"{place} cannot be had ({error.strerror}); set HOST to an address of this machine, or PORT"
        )
        self.code = 1 if taken else HOPELESS


def serve(early: Early | None = None) -> NoReturn:
    """Run the host with the settings there are, and end the process; ``early``: see ``run``."""
    # What is imported and opened on the way to a running host stays; the host enables it again.
    gc.disable()
    raise SystemExit(run(take_settings(os.environ), early=early))


def run(settings: Settings, bound: socket.socket | None = None, early: Early | None = None) -> int:
    """Run the host until a signal or POST /control/stop; return the exit code. ``bound``: where it listens;
    ``early``: the model's process, if it was begun already.

    0: it was stopped. 1: it could not go on, and another try may succeed. 2: only the operator can mend it.
    """
    if settings.api_token is None and not settings.allow_no_token_500:
        stop("; ".join((UNGUARDED, *(said for said in settings.warnings if said.startswith("api_token")))))
    if wrong := guessable(settings) or lacks_temporary_files():
        stop(wrong)
    not_dumpable()
    # Whatever umask it was given: what it makes is not everybody's to write.
    os.umask(os.umask(0o022) | 0o002)
    configure(settings.log_level, settings.log_format, Redactor(secret_values(settings)))
    for warning in deprecated(settings):
        logger.warning("%s", warning)
    sys.setswitchinterval(SWITCH_S)
    _share_one_arena()
    try:
        bound = bound or listening(settings)
    except CannotListen as fault:
        logger.error("%s", fault)
        return fault.code
    try:
        anyio.run(serve_on, bound, settings, early, backend_options={"use_uvloop": True})
    except (StoreError, PicoError) as error:
        logger.error("%s", error)
        hopeless = error.hopeless if isinstance(error, StoreError) else isinstance(error, Misconfigured)
        return HOPELESS if hopeless else 1
    finally:
        bound.close()
    return 0


def listening(settings: Settings) -> socket.socket:
    """Return a socket in which requests wait from now on; raises CannotListen."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((settings.host, settings.port))
        bound.listen(BACKLOG)
        bound.set_inheritable(False)
    except OSError as error:
        bound.close()
        raise CannotListen(settings, error) from None
    return bound


def _share_one_arena() -> None:
    """Have worker threads allocate where the event loop does (mallopt(3)): one at a time runs anyway, and
    arenas of their own hold 5 MiB.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_ARENA_MAX, 1)


class _Stop:
    """Takes the first reason to stop. It cancels an opening; what is open ends in good order, or in time."""

    def __init__(self, settings: Settings) -> None:
        self.asked = anyio.Event()
        self.opening = anyio.CancelScope()
        self._loop = asyncio.get_running_loop()
        self._stuck: str | None = None
        self._end: threading.Thread | None = None
        self._store: Store | None = None
        self._grace_s = settings.stop_grace_ms / 1000
        self._places = _places(settings)
        self._unseen = "The opening of the store" if settings.database_url is None else "DATABASE_URL"
        threading.Thread(target=self._watch, name="watch", daemon=True).start()

    def __call__(self, reason: str) -> None:
        if self.asked.is_set():
            return
        logger.info("Stopping", extra={"reason": reason})
        self.asked.set()
        self._end_in_time()
        if self._store is None:
            self.opening.cancel()

    def opened(self, store: Store) -> None:
        """Let what runs come to its end from now on, and ask the store whether it hangs."""
        self._store = store

    async def on(self, signals: AsyncIterator[signal.Signals]) -> None:
        """Stop at the first of the signals."""
        async for number in signals:
            self(number.name)

    def _watch(self) -> None:
        """Tell when the event loop stands still (a disk hangs), and see the signals that it can't."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _signals())  # only so does sigpending(2) show them
        turned, waits = threading.Event(), ""
        while not self._loop.is_closed():
            turned.clear()
            with suppress(RuntimeError):  # closed just now
                self._loop.call_soon_threadsafe(turned.set)
            # In two: the whole process may have been stopped meanwhile.
            if not (turned.wait(HANGS_S / 2) or turned.wait(HANGS_S / 2)):
                self._wait_for_loop(turned)
            time.sleep(HANGS_S / 2)
            if self._store is None and not waits and (waits := self._silent(HANGS_S) or ""):
                logger.error("The host cannot start: %s does not answer", waits)

    def _wait_for_loop(self, turned: threading.Event) -> None:
        frame = sys._current_frames()[threading.main_thread().ident or 0]
        where = f"{frame.f_code.co_filename}:{frame.f_lineno}"
        self._stuck = self._silent(HANGS_S / 4) or f"The event loop, in {where},"
        logger.error("No request is answered: %s does not answer", self._stuck)
        while not turned.wait(0.5):
            if not signal.sigpending().isdisjoint(_signals()):
                self._end_in_time()
        self._stuck = None
        logger.warning("Requests are answered again")

    def _end_in_time(self) -> None:
        if self._end is None:
            self._end = threading.Thread(target=self._end_what_hangs, daemon=True)
            self._end.start()

    def _end_what_hangs(self) -> None:
        """End a process that was told to stop and whose threads the kernel doesn't give back."""
        time.sleep(0.0 if self._store is None else self._grace_s)
        least = time.monotonic() + HANGS_S
        while (place := self._hanging()) is None or time.monotonic() < least:
            time.sleep(0.5)
        logger.error("%s does not answer: ending without it; nothing acknowledged is lost", place)
        # Descriptors stay open as long as the kernel keeps a thread: children are told by the connections.
        for descriptor in Path("/proc/self/fd").iterdir():
            with suppress(OSError), socket.socket(fileno=os.dup(int(descriptor.name))) as connection:
                connection.shutdown(socket.SHUT_RDWR)
        os._exit(1)

    def _hanging(self) -> str | None:
        return self._stuck or self._silent(HANGS_S) or (self._unseen if self._store is None else None)

    def _silent(self, within_s: float) -> str | None:
        """Return whose file system doesn't answer in so many seconds; blocks as long."""
        if self._store is not None:
            return self._store.hanging(within_s)
        for name, path in self._places.items():
            # That it isn't there is an answer, and changes nothing where nothing may be changed.
            nothing = path / f"picoclaw-{os.urandom(8).hex()}"
            if hangs(nothing.unlink, within_s):
                return f"{name} ({path})"
        return None


def _places(settings: Settings) -> dict[str, Path]:
    """Return the directories that a start looks into, by their settings."""
    return {
        **settings.store_dirs,
        "MEMORY_DIR": settings.memory_dir,
        "PRINCIPALS_DIR": settings.principals_dir,
        "SKILLS_DIR": settings.skills_dir,
        **({} if settings.org_dir is None else {"ORG_DIR": settings.org_dir}),
    }


async def serve_on(bound: socket.socket, settings: Settings, early: Early | None = None) -> None:
    """Open the host, answer on the socket until it is to stop, and close everything in order."""
    for warning in (*settings.warnings, *settings.channels.without_owners()):
        logger.warning("%s", warning)
    stop = _Stop(settings)
    fault: PicoError | StoreError | None = None
    with anyio.open_signal_receiver(*_signals()) as signals:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stop.on, signals)
            with stop.opening:
                try:
                    await _live(bound, settings, stop, early)
                except (PicoError, StoreError) as error:
                    fault = error  # raised outside of the group, which would wrap it
            tasks.cancel_scope.cancel()
    if fault is not None:
        raise fault
    logger.info("Stopped")


async def _live(bound: socket.socket, settings: Settings, stop: _Stop, early: Early | None) -> None:
    most = most_connections()
    async with ModelProcess(early) as process:
        # Only now, beside that process's own: what is asked while a quarter of a second's modules are
        # imported waits in the socket.
        from host.app import app, open_host

        async with open_host(settings, stop, process) as host, anyio.create_task_group() as tasks:
            stop.opened(host.ledger.store)
            book = Connections(most, host.ledger.counts)
            server = _Server(_config(app(host), settings.gateway.trusted_proxies, book))
            tasks.start_soon(server.serve, [bound])
            # What is there by now stays and is not looked at again: a full collection, which stops all,
            # takes 20 instead of 50 ms.
            gc.freeze()
            gc.set_threshold(10_000)
            gc.enable()
            logger.info("Listening", extra={"host": settings.host, "port": bound.getsockname()[1]})
            await stop.asked.wait()
            # While the runs come to their end the socket stays open: /health and streams go on.
            await host.runs.drain()
            server.should_exit = True


def _signals() -> Iterator[signal.Signals]:
    yield signal.SIGTERM
    yield signal.SIGINT
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup(1)
        yield signal.SIGHUP


class _Server(Server):
    """uvicorn without its own signal handling: ours drains first, while /health still answers."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to the host."""
        yield


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

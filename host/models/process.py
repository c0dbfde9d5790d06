"""The process with the model's client, and the socket to it: started when wanted, again when it ended."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, cast

import anyio
from anyio.abc import Process

from host.models import messages
from host.models.messages import ModelConfig
from host.ports import ModelError, OnDelta, Reply
from shared.jsons import dump_bytes, loads
from shared.processes import Frames, terminate

logger = logging.getLogger("picoclaw.agent")

STOP_S: Final = 5.0
"""How long the process may take to end once its socket is closed."""

PASSED_ON: Final = frozenset(
    {"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR", "TZ"}
)
"""What of the host's environment is for the model's client, in capitals or not."""


LEAVE_S: Final = 30.0
"""How long the process may take to give a cancelled request up before it counts as stuck."""


class WorkerFault(Exception):
    """The process met an exception that nobody expected; its traceback is the text."""


class ModelProcess:
    """One process for all models of a host, there from the beginning to the end of the block."""

    def __init__(self) -> None:
        self._starting = anyio.Lock()
        self._process: Process | None = None
        self._link: Link | None = None
        self._closed = False

    async def __aenter__(self) -> ModelProcess:
        with suppress(ModelError):  # it is logged; whoever asks tries again
            await self.link()
        return self

    async def __aexit__(self, *_: object) -> None:
        with anyio.CancelScope(shield=True):
            await self.aclose()

    @property
    def pid(self) -> int | None:
        """The process's id while there is one."""
        return None if self._process is None else self._process.pid

    async def ask(self, config: ModelConfig, request: Mapping[str, Any], on_delta: OnDelta) -> Reply:
        """See ``host.ports.Ask``; raises Misconfigured without a credential."""
        config.check()
        link = await self.link()
        return await link.ask(config, dump_bytes({**request, "stream": True}), on_delta)

    async def link(self) -> Link:
        """Return the way to the process, which is started if there is none; raises ModelError."""
        while self._link is None or self._link.lost:
            # Cut in two a start would leave a process without an owner.
            async with self._starting:
                with anyio.CancelScope(shield=True):
                    if self._link is None or self._link.lost:
                        self._link = await self._start()
        return self._link

    async def aclose(self) -> None:
        """Have the process end, and wait for that."""
        self._closed = True
        async with self._starting:
            await self._end()

    async def _start(self) -> Link:
        if self._process is not None:
            logger.warning("The model process ended unexpectedly and is started again")
            await self._end()
        if self._closed:
            raise ModelError("The host is stopping.", retryable=False)
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = await anyio.open_process(
                    [sys.executable, "-I", "-m", "host.models.worker", str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=None,
                    env=_environment(),
                    cwd=os.sep,
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,  # the terminal's Ctrl-C is for the host
                )
            except OSError as error:
                ours.close()
                logger.error("The model process could not be started: %s", error.strerror)
                raise ModelError(
                    "The process that reaches the model could not be started.", retryable=True
                ) from None
        ours.setblocking(False)
        _, link = await asyncio.get_running_loop().create_connection(lambda: Link(self._kill), sock=ours)
        return link

    def _kill(self) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()

    async def _end(self) -> None:
        if self._link is not None:
            self._link.close()
        if self._process is not None:
            process, self._process = self._process, None
            await terminate(process, STOP_S)


def _environment() -> dict[str, str]:
    passed_on = {name: value for name, value in os.environ.items() if name.upper() in PASSED_ON}
    return {**passed_on, "PYDANTIC_DISABLE_PLUGINS": "__all__"}


@dataclass(slots=True)
class _Asked:
    """A request in flight: who hears the pieces of its answer, and its end when that has come."""

    on_delta: OnDelta
    end: asyncio.Future[Reply]

    def take(self, kind: int, body: bytes) -> None:
        """Take what came for it; what ``on_delta`` raises ends it too."""
        if self.end.done():
            return
        try:
            if kind != messages.PIECES:
                self.end.set_result(_end(kind, body))
                return
            for delta in messages.pieces_of(body):
                self.on_delta(delta)
        except Exception as error:  # noqa: BLE001 - whoever asked raises it
            self.end.set_exception(error)


class Link(asyncio.Protocol):
    """Asks over one socket; requests overlap.

    ``on_stuck`` is called when the process doesn't let go of a cancelled request. When the other end is
    gone, the requests in flight fail so that they are tried again.
    """

    def __init__(self, on_stuck: Callable[[], None]) -> None:
        self._on_stuck = on_stuck
        self._transport: asyncio.Transport
        self._frames = Frames(messages.MOST)
        self._last_number = 0
        self._clients: dict[ModelConfig, int] = {}
        self._asked: dict[int, _Asked] = {}
        self._leaving: dict[int, asyncio.TimerHandle] = {}
        self.lost = False

    async def ask(self, config: ModelConfig, request: bytes, on_delta: OnDelta) -> Reply:
        """Answer a Messages request (JSON, with ``stream``) as ``host.ports.Ask`` says."""
        number = self._send(config, request)
        asked = self._asked[number] = _Asked(on_delta, asyncio.get_running_loop().create_future())
        try:
            return await asked.end
        finally:
            if number in self._asked:
                self._leave(number)

    def close(self) -> None:
        """Have the process end: it sees its socket close."""
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport (asyncio's call)."""
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail what is in flight (asyncio's call)."""
        self._lose()

    def data_received(self, data: bytes) -> None:
        """Give what came to those who wait for it (asyncio's call)."""
        for kind, number, _, body in messages.frames_of(self._frames.feed(data)):
            ended = kind in messages.ENDS
            asked = self._asked.pop(number, None) if ended else self._asked.get(number)
            if asked is not None:
                asked.take(kind, body)
            elif ended and number in self._leaving:
                self._leaving.pop(number).cancel()

    def _lose(self) -> None:
        self.lost = True
        for timer in self._leaving.values():
            timer.cancel()
        self._leaving.clear()
        gone = dump_bytes(vars(_gone()))
        for asked in self._asked.values():
            asked.take(messages.FAILURE, gone)

    def _send(self, config: ModelConfig, request: bytes) -> int:
        if self.lost:
            raise _gone()
        client = self._clients.get(config)
        if client is None:
            client = self._clients[config] = len(self._clients)
            self._transport.write(messages.frame(messages.CLIENT, 0, dump_bytes(config), client=client))
        self._last_number = number = self._last_number + 1
        self._transport.write(messages.frame(messages.ASK, number, request, client=client))
        return number

    def _leave(self, number: int) -> None:
        """Cancel a request that has not ended."""
        del self._asked[number]
        if not self.lost:
            self._transport.write(messages.frame(messages.CANCEL, number))
            self._leaving[number] = asyncio.get_running_loop().call_later(LEAVE_S, self._stuck)

    def _stuck(self) -> None:
        logger.error("The model process doesn't let go of a request; it is ended")
        self._on_stuck()
        self._transport.abort()
        self._lose()


def _end(kind: int, body: bytes) -> Reply:
    if kind == messages.REPLY:
        return messages.reply_of(body)
    if kind == messages.FAILURE:
        raise ModelError(**loads(body))
    raise WorkerFault(body.decode(errors="replace"))


def _gone() -> ModelError:
    return ModelError("The process that reaches the model ended.", retryable=True)

"""The host's end of the socket to the process with the model's client."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final, cast

from host.models import messages
from host.models.messages import ModelConfig
from host.ports import Delta, ModelError, Reply

logger = logging.getLogger("picoclaw.agent")

LEAVE_S: Final = 30.0
"""How long the process may take to give a cancelled request up before it counts as stuck."""


class WorkerFault(Exception):
    """The process met an exception that nobody expected; its traceback is the text."""


class _Asked:
    """A request in flight: what has arrived for it, and who waits for more."""

    __slots__ = ("_arrived", "_waiter")

    def __init__(self) -> None:
        self._arrived: list[tuple[int, bytes]] = []
        self._waiter: asyncio.Future[None] | None = None

    def put(self, kind: int, body: bytes) -> None:
        self._arrived.append((kind, body))
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def take(self) -> list[tuple[int, bytes]]:
        if not self._arrived:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        arrived, self._arrived = self._arrived, []
        return arrived


class Link(asyncio.Protocol):
    """Asks over one socket; requests overlap.

    ``on_stuck`` is called when the process doesn't let go of a cancelled request. When the other end is
    gone, the requests in flight fail so that they are tried again.
    """

    def __init__(self, on_stuck: Callable[[], None]) -> None:
        self._on_stuck = on_stuck
        self._transport: asyncio.Transport
        self._frames = messages.Frames()
        self._last_number = 0
        self._clients: dict[ModelConfig, int] = {}
        self._asked: dict[int, _Asked] = {}
        self._leaving: dict[int, asyncio.TimerHandle] = {}
        self.lost = False

    async def ask(
        self, config: ModelConfig, request: bytes, on_delta: Callable[[Delta], Awaitable[None]]
    ) -> Reply:
        """Answer a Messages request (JSON, with ``stream``) as ``host.ports.Ask`` says."""
        number, asked = self._send(config, request)
        try:
            while True:
                for kind, body in await asked.take():
                    if kind == messages.PIECES:
                        for delta in messages.pieces_of(body):
                            await on_delta(delta)
                    else:
                        return _end(kind, body)
        finally:
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
        for kind, number, _, body in self._frames.feed(data):
            ended = kind in messages.ENDS
            asked = self._asked.pop(number, None) if ended else self._asked.get(number)
            if asked is not None:
                asked.put(kind, body)
            elif ended and number in self._leaving:
                self._leaving.pop(number).cancel()

    def _lose(self) -> None:
        self.lost = True
        for timer in self._leaving.values():
            timer.cancel()
        self._leaving.clear()
        gone = messages.failure_body(_gone())
        for asked in self._asked.values():
            asked.put(messages.FAILURE, gone)

    def _send(self, config: ModelConfig, request: bytes) -> tuple[int, _Asked]:
        if self.lost:
            raise _gone()
        client = self._clients.get(config)
        if client is None:
            client = self._clients[config] = len(self._clients)
            self._transport.write(
                messages.frame(messages.CLIENT, 0, messages.config_body(config), client=client)
            )
        self._last_number = number = self._last_number + 1
        self._transport.write(messages.frame(messages.ASK, number, request, client=client))
        asked = self._asked[number] = _Asked()
        return number, asked

    def _leave(self, number: int) -> None:
        """Cancel a request that has not ended."""
        if self._asked.pop(number, None) is not None and not self.lost:
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
        raise messages.failure_of(body)
    raise WorkerFault(body.decode(errors="replace"))


def _gone() -> ModelError:
    return ModelError("The process that reaches the model ended.", retryable=True)

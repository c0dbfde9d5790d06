"""The process with the model's client, and what is asked of it over its socket."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import anyio

from host.models import messages
from host.models.messages import ModelConfig
from host.ports import ModelError, OnDelta, Reply
from shared.children import Child, Link, Stopping
from shared.jsons import dump_bytes, loads

logger = logging.getLogger("picoclaw.agent")

PASSED_ON: Final = frozenset(
    {"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR", "TZ"}
)
"""What of the host's environment is for the model's client, in capitals or not."""


LEAVE_S: Final = 30.0
"""How long the process may take to give a cancelled request up before it counts as stuck."""


class WorkerFault(Exception):
    """The process met an exception that nobody expected; its traceback is the text."""


class ModelProcess(Child["Asking"]):
    """One process for all models of a host, there from the beginning to the end of the block."""

    def __init__(self) -> None:
        super().__init__("host.models.worker", lambda: Asking(self.kill))

    async def __aenter__(self) -> ModelProcess:
        with suppress(ModelError):  # it is logged; whoever asks tries again
            await self.link()
        return self

    async def __aexit__(self, *_: object) -> None:
        with anyio.CancelScope(shield=True):
            await self.aclose()

    def environment(self) -> dict[str, str]:
        """Return the host's proxies and certificates too."""
        passed_on = {name: value for name, value in os.environ.items() if name.upper() in PASSED_ON}
        return passed_on | super().environment()

    async def ask(self, config: ModelConfig, request: Mapping[str, Any], on_delta: OnDelta) -> Reply:
        """See ``host.ports.Ask``; raises Misconfigured without a credential."""
        config.check()
        link = self.reached if self.reached and not self.reached.lost else await self.link()
        return await link.ask(config, dump_bytes({**request, "stream": True}), on_delta)

    async def start(self) -> Asking:
        """Start it; raises ModelError."""
        try:
            return await super().start()
        except Stopping:
            raise ModelError("The host is stopping.", retryable=False) from None
        except OSError as error:
            logger.error("The model process could not be started: %s", error.strerror)
            said = "The process that reaches the model could not be started."
            raise ModelError(said, retryable=True) from None


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


class Asking(Link):
    """Asks over one socket; requests overlap.

    ``on_stuck`` is called when the process doesn't let go of a cancelled request. When the other end is
    gone, the requests in flight fail so that they are tried again.
    """

    def __init__(self, on_stuck: Callable[[], None]) -> None:
        super().__init__(messages.MOST)
        self._on_stuck = on_stuck
        self._last_number = 0
        self._clients: dict[ModelConfig, int] = {}
        self._asked: dict[int, _Asked] = {}
        self._leaving: dict[int, asyncio.TimerHandle] = {}

    async def ask(self, config: ModelConfig, request: bytes, on_delta: OnDelta) -> Reply:
        """Answer a Messages request (JSON, with ``stream``) as ``host.ports.Ask`` says."""
        number = self._send(config, request)
        asked = self._asked[number] = _Asked(on_delta, asyncio.get_running_loop().create_future())
        try:
            return await asked.end
        finally:
            if number in self._asked:
                self._leave(number)

    def data_received(self, data: bytes) -> None:
        """Give what came to those who wait for it (asyncio's call)."""
        for kind, number, _, body in messages.frames_of(self.frames.feed(data)):
            ended = kind in messages.ENDS
            asked = self._asked.pop(number, None) if ended else self._asked.get(number)
            if asked is not None:
                asked.take(kind, body)
            elif ended and number in self._leaving:
                self._leaving.pop(number).cancel()

    def lose(self) -> None:
        """Fail what is in flight."""
        super().lose()
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
            self.transport.write(messages.frame(messages.CLIENT, 0, dump_bytes(config), client=client))
        self._last_number = number = self._last_number + 1
        self.transport.write(messages.frame(messages.ASK, number, request, client=client))
        return number

    def _leave(self, number: int) -> None:
        """Cancel a request that has not ended."""
        del self._asked[number]
        if not self.lost:
            self.transport.write(messages.frame(messages.CANCEL, number))
            self._leaving[number] = asyncio.get_running_loop().call_later(LEAVE_S, self._stuck)

    def _stuck(self) -> None:
        logger.error("The model process doesn't let go of a request; it is ended")
        self._on_stuck()


def _end(kind: int, body: bytes) -> Reply:
    if kind == messages.REPLY:
        return messages.reply_of(body)
    if kind == messages.FAILURE:
        raise ModelError(**loads(body))
    raise WorkerFault(body.decode(errors="replace"))


def _gone() -> ModelError:
    return ModelError("The process that reaches the model ended.", retryable=True)

"""The process with the model's client, and what both say to each other, over one stream socket.

Frames (``shared.processes``) with a header of our own, then a body. The host numbers its requests, and the
ways to a model (``CLIENT``). A request ends with exactly one frame of ``ENDS``, also one that was cancelled.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import anyio

from host.models import WORKER, environment
from host.ports import Delta, ModelError, OnDelta, Reply, TextDelta, ThinkingDelta, ToolUseStart
from shared.children import Child, Link, Stopping
from shared.errors import Misconfigured
from shared.jsons import dump_bytes, loads
from shared.processes import Early, framed
from shared.usage_values import Usage

# From the host:
CLIENT: Final = 1
"""A way to a model, told before it is asked: a ModelConfig as JSON."""
ASK: Final = 2
"""A Messages request, as it is to be sent."""
CANCEL: Final = 3

# To the host:
PIECES: Final = 4
"""Deltas that came together."""
REPLY: Final = 5
"""A Reply as JSON."""
FAILURE: Final = 6
"""The attributes of a ModelError as JSON."""
FAULT: Final = 7
"""An exception that nobody expected, as a traceback."""
CANCELLED: Final = 8
ENDS: Final = frozenset({REPLY, FAILURE, FAULT, CANCELLED})

Frame = tuple[int, int, int, bytes]
"""Its kind, the number of the request, the number of the client, the body."""

_HEADER: Final = struct.Struct("!BQI")
MOST: Final = (1 << 32) - 1
"""Bytes of a frame, as many as its length can say: both sides are ours."""
_TEXTS: Final = (TextDelta, ThinkingDelta)
_TOOL_USE: Final = 2
SILENCE_S: Final = 90.0
"""Seconds without a byte after which an answer that has begun counts as broken off, by default."""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """How to reach the model. Comes from the settings; the environment is never read here.

    ``base_url`` None is the Anthropic API. ``offline`` takes the embedded model and needs no credential.
    ``timeout_s`` bounds the wait for an answer to begin, ``silence_s`` the silence between two pieces of it;
    nothing bounds the answer as a whole.
    """

    api_key: str | None = field(default=None, repr=False)
    auth_token: str | None = field(default=None, repr=False)
    base_url: str | None = None
    offline: bool = False
    timeout_s: float = 600.0
    silence_s: float = SILENCE_S
    connect_timeout_s: float = 10.0

    def check(self) -> None:
        """Raise Misconfigured if the API is to be reached without a credential.

        A server of one's own (``base_url``) may want none.
        """
        if not (self.offline or self.base_url or self.api_key or self.auth_token):
            raise Misconfigured("Neither ANTHROPIC_API_KEY nor ANTHROPIC_AUTH_TOKEN is configured")


def frame(kind: int, number: int, body: bytes = b"", *, client: int = 0) -> bytes:
    """Return a frame's bytes."""
    return framed(_HEADER.pack(kind, number, client) + body, MOST)


def frames_of(bodies: Iterable[bytes]) -> Iterator[Frame]:
    """Yield what ``frame`` was given, of the bodies that ``shared.processes`` cut out."""
    for body in bodies:
        kind, number, client = _HEADER.unpack_from(body)
        yield kind, number, client, body[_HEADER.size :]


def pieces_body(deltas: Iterable[Delta]) -> bytes:
    """Return the body of ``PIECES``, in which texts of a kind that follow each other are one piece."""
    pieces: list[list[Any]] = []
    for delta in deltas:
        if isinstance(delta, ToolUseStart):
            pieces.append([_TOOL_USE, delta.id, delta.name])
        elif pieces and pieces[-1][0] == _TEXTS.index(type(delta)):
            pieces[-1].append(delta.text)
        else:
            pieces.append([_TEXTS.index(type(delta)), delta.text])
    return dump_bytes(pieces)


def pieces_of(body: bytes) -> Iterator[Delta]:
    """Yield the pieces that a body of ``PIECES`` says."""
    for kind, *said in loads(body):
        yield ToolUseStart(*said) if kind == _TOOL_USE else _TEXTS[kind]("".join(said))


def reply_of(body: bytes) -> Reply:
    """Return the reply whose JSON the body of ``REPLY`` is."""
    fields = loads(body)
    return Reply(**{**fields, "usage": Usage(**fields["usage"]), "left_out": ()})


logger = logging.getLogger("picoclaw.agent")

LEAVE_S: Final = 30.0
"""How long the process may take to give a cancelled request up before it counts as stuck."""


class WorkerFault(Exception):
    """The process met an exception that nobody expected; its traceback is the text."""


class ModelProcess(Child["Asking"]):
    """One process for all models of a host, there from the beginning to the end of the block."""

    def __init__(self, early: Early | None = None) -> None:
        super().__init__(WORKER, lambda: Asking(self.kill), early=early)

    async def __aenter__(self) -> ModelProcess:
        with suppress(ModelError):  # it is logged; whoever asks tries again
            await self.link()
        return self

    async def __aexit__(self, *_: object) -> None:
        with anyio.CancelScope(shield=True):
            await self.aclose()

    def environment(self) -> dict[str, str]:
        """Return the host's proxies and certificates too."""
        return environment()

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
            if kind != PIECES:
                self.end.set_result(_end(kind, body))
                return
            for delta in pieces_of(body):
                self.on_delta(delta)
        except Exception as error:  # noqa: BLE001 - whoever asked raises it
            self.end.set_exception(error)


class Asking(Link):
    """Asks over one socket; requests overlap.

    ``on_stuck`` is called when the process doesn't let go of a cancelled request. When the other end is
    gone, the requests in flight fail so that they are tried again.
    """

    def __init__(self, on_stuck: Callable[[], None]) -> None:
        super().__init__(MOST)
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
        for kind, number, _, body in frames_of(self.frames.feed(data)):
            ended = kind in ENDS
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
            asked.take(FAILURE, gone)

    def _send(self, config: ModelConfig, request: bytes) -> int:
        if self.lost:
            raise _gone()
        client = self._clients.get(config)
        if client is None:
            client = self._clients[config] = len(self._clients)
            self.transport.write(frame(CLIENT, 0, dump_bytes(config), client=client))
        self._last_number = number = self._last_number + 1
        self.transport.write(frame(ASK, number, request, client=client))
        return number

    def _leave(self, number: int) -> None:
        """Cancel a request that has not ended."""
        del self._asked[number]
        if not self.lost:
            self.transport.write(frame(CANCEL, number))
            self._leaving[number] = asyncio.get_running_loop().call_later(LEAVE_S, self._stuck)

    def _stuck(self) -> None:
        logger.error("The model process doesn't let go of a request; it is ended")
        self._on_stuck()


def _end(kind: int, body: bytes) -> Reply:
    if kind == REPLY:
        return reply_of(body)
    if kind == FAILURE:
        raise ModelError(**loads(body))
    raise WorkerFault(body.decode(errors="replace"))


def _gone() -> ModelError:
    return ModelError("The process that reaches the model ended.", retryable=True)

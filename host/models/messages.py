"""What the host and the process with the model's client say to each other, over one stream socket.

Frames: a header, then a body. The host numbers its requests, and the ways to a model (``CLIENT``). A request
ends with exactly one frame of ``ENDS``, also one that was cancelled.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from host.ports import Delta, ModelError, Reply, TextDelta, ThinkingDelta, ToolUseStart
from shared.errors import Misconfigured
from shared.jsons import dump_bytes, loads
from shared.values import Usage

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
FAILURE: Final = 6
"""A ModelError."""
FAULT: Final = 7
"""An exception that nobody expected, as a traceback."""
CANCELLED: Final = 8
ENDS: Final = frozenset({REPLY, FAILURE, FAULT, CANCELLED})

Frame = tuple[int, int, int, bytes]
"""Its kind, the number of the request, the number of the client, the body."""

_HEADER: Final = struct.Struct("!BQIQ")
_DELTAS: Final = (TextDelta, ThinkingDelta, ToolUseStart)


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
    return _HEADER.pack(kind, number, client, len(body)) + body


class Frames:
    """Cuts what comes in into frames."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._wanted = _HEADER.size

    def feed(self, data: bytes) -> list[Frame]:
        """Take what came and return the frames that are whole now."""
        self._data += data
        whole: list[Frame] = []
        while len(self._data) >= self._wanted:
            kind, number, client, length = _HEADER.unpack_from(self._data)
            end = _HEADER.size + length
            if len(self._data) < end:
                self._wanted = end
                break
            whole.append((kind, number, client, bytes(self._data[_HEADER.size : end])))
            del self._data[:end]
            self._wanted = _HEADER.size
        return whole


def config_body(config: ModelConfig) -> bytes:
    """Return the body of ``CLIENT``."""
    return dump_bytes(asdict(config))


def config_of(body: bytes) -> ModelConfig:
    """Return what ``config_body`` made a body of."""
    return ModelConfig(**loads(body))


def pieces_body(deltas: Iterable[Delta]) -> bytes:
    """Return the body of ``PIECES``."""
    return dump_bytes([_piece(delta) for delta in deltas])


def pieces_of(body: bytes) -> list[Delta]:
    """Return what ``pieces_body`` made a body of."""
    return [_DELTAS[kind](*fields) for kind, *fields in loads(body)]


def reply_body(reply: Reply) -> bytes:
    """Return the body of ``REPLY``; raises TypeError for what JSON can't hold."""
    return dump_bytes(reply)


def reply_of(body: bytes) -> Reply:
    """Return what ``reply_body`` made a body of."""
    fields = loads(body)
    return Reply(**{**fields, "usage": Usage(**fields["usage"]), "left_out": ()})


def failure_body(error: ModelError) -> bytes:
    """Return the body of ``FAILURE``."""
    return dump_bytes(vars(error))


def failure_of(body: bytes) -> ModelError:
    """Return what ``failure_body`` made a body of."""
    return ModelError(**loads(body))


def _piece(delta: Delta) -> list[Any]:
    if isinstance(delta, TextDelta):
        return [0, delta.text]
    if isinstance(delta, ThinkingDelta):
        return [1, delta.text]
    return [2, delta.id, delta.name]

"""What the host and the process with the model's client say to each other, over one stream socket.

Frames (``shared.processes``) with a header of our own, then a body. The host numbers its requests, and the
ways to a model (``CLIENT``). A request ends with exactly one frame of ``ENDS``, also one that was cancelled.
"""

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from host.ports import Delta, Reply, TextDelta, ThinkingDelta, ToolUseStart
from shared.errors import Misconfigured
from shared.jsons import dump_bytes, loads
from shared.processes import framed
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

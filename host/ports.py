"""The port to a language model: what the agent loop asks, what it gets back, how it fails.

Nothing here imports the SDK (half a second); ``host.models.anthropic_model`` does and implements the port, in
a process of its own (``host.models``).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol

from shared.errors import Misconfigured
from shared.values import Block, Usage

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


WHOLE: Final = frozenset({"end_turn", "stop_sequence", "tool_use"})
"""Stop reasons of a reply that the model itself brought to its end
(https://platform.claude.com/docs/en/build-with-claude/handling-stop-reasons)."""

LIMITS: Final = {
    "max_tokens": "max_tokens, the most that one answer may have",
    "model_context_window_exceeded": "the end of the model's window",
}
"""Stop reasons of a reply that was cut off, and what it reached."""


@dataclass(frozen=True, slots=True)
class Target:
    """A model's id, and the address of the API that knows it ("": Anthropic's)."""

    model: str
    address: str = ""


@dataclass(frozen=True, slots=True)
class Reply:
    """One finished reply.

    ``blocks`` are plain content blocks, ready to be stored and to be sent back as the assistant's message;
    blank text blocks, which the API would refuse there, are left out. ``malformed`` holds, by tool use id,
    tool input that is not a JSON object; such a block stays in ``blocks`` with an empty input.
    ``asked`` is what was asked; ``model`` is what the API says answered. ``left_out`` are the kinds of blocks
    that the API had refused (``host.models.mending``): the history goes on without them.
    """

    blocks: list[Block]
    stop_reason: str
    usage: Usage
    model: str
    malformed: Mapping[str, str] = field(default_factory=dict)
    asked: Target | None = None
    left_out: tuple[str, ...] = ()

    @property
    def asked_model(self) -> str:
        """The id that was asked, "" if none was."""
        return self.asked.model if self.asked else ""

    @property
    def text(self) -> str:
        """The text blocks, joined."""
        return "".join(block["text"] for block in self.blocks if block["type"] == "text")

    @property
    def cut_call(self) -> str | None:
        """The id of the call that a limit cut off, which is the last block then, None if there is none."""
        last = self.blocks[-1] if self.blocks else {"type": ""}
        if self.stop_reason not in LIMITS or last["type"] != "tool_use":
            return None
        # Cut off before the first letter of its input, a call looks like one without any.
        return last["id"] if last["id"] in self.malformed or not last["input"] else None

    @property
    def tool_uses(self) -> list[Block]:
        """The ``tool_use`` blocks in their order."""
        return [block for block in self.blocks if block["type"] == "tool_use"]


@dataclass(frozen=True, slots=True)
class TextDelta:
    """A piece of the answer's text, whitespace exact."""

    text: str


@dataclass(frozen=True, slots=True)
class ThinkingDelta:
    """A piece of the model's thinking."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolUseStart:
    """The model begins to write a tool call; its input is in the finished reply."""

    id: str
    name: str


Delta = TextDelta | ThinkingDelta | ToolUseStart


class ModelError(Exception):
    """A step failed. ``message`` is a sentence of our own, without the API's text, a URL or a credential.

    ``retryable``: the same request may succeed later, after ``retry_after_s`` seconds if the API said so.
    ``status``: the HTTP status, or what an error inside the stream stands for; None without an answer.
    ``reason``: ``too_long`` when the request's ``tokens`` are too many for the model's ``window``,
    ``max_tokens`` when less output would fit, at most ``output`` (figures if the API named them), else "".
    ``said``: the API's own words, one line; ``asked``: whose. Not redacted before a KeyedModel raises it.
    """

    def __init__(
        self,
        message: str,
        *,
        retryable: bool,
        retry_after_s: float | None = None,
        status: int | None = None,
        reason: Literal["", "too_long", "max_tokens"] = "",
        tokens: int | None = None,
        window: int | None = None,
        output: int | None = None,
        said: str = "",
        asked: Target | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.retryable = retryable
        self.retry_after_s = retry_after_s
        self.status = status
        self.reason = reason
        self.tokens = tokens
        self.window = window
        self.output = output
        self.said = said
        self.asked = asked

    @property
    def sentence(self) -> str:
        """The message with the API's own words behind it."""
        return f"{self.message.removesuffix('.')}: {self.said}" if self.said else self.message


class ModelPort(Protocol):
    """A model that answers one request at a time, telling its pieces as they come."""

    async def reply(self, request: Mapping[str, Any], on_delta: Callable[[Delta], Awaitable[None]]) -> Reply:
        """Answer a Messages request (without ``stream``).

        Raises ``ModelError``; what ``on_delta`` raises passes unchanged.
        """
        ...

    async def aclose(self) -> None:
        """Give back the connections."""
        ...


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A tool as the model sees it.

    ``input_schema`` is a JSON Schema object with ``additionalProperties: false``.
    ``parallel``: calls of one reply may run side by side with others. ``read_only``: a call has no effect,
    so that a run that was cut off during one may be repeated. ``definition``: the model's API runs the tool
    itself, and this is how it wants to be told of it.
    """

    name: str
    description: str
    input_schema: Mapping[str, Any]
    parallel: bool = True
    read_only: bool = False
    delegable: bool = True
    definition: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Image:
    """An image for the model: base64 ``data`` of an ``image/png|jpeg|gif|webp`` ``media_type``."""

    data: str
    media_type: str


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a call gave: text for the model (a sentence if ``is_error``), and images if any.

    ``trusted``: the operator's own words, which the model needs no warning of.
    """

    text: str
    is_error: bool = False
    images: tuple[Image, ...] = ()
    trusted: bool = False


class Toolset(Protocol):
    """A group of tools bound to one conversation at its birth; no argument changes whose it is."""

    def specs(self) -> Sequence[ToolSpec]:
        """Return the tools, in a stable order (the prompt cache depends on it)."""
        ...

    async def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        """Run one tool. Faults come back as ``ToolResult(is_error=True)``; only cancellation raises."""
        ...

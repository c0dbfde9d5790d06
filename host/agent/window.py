"""How much fits into a model's window, and how far the estimate of a request is off."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from host.ports import Message, Model, ModelError, Reply, Target
from shared.clock import monotonic_ms
from shared.jsons import dump_bytes
from shared.settings.sections import History

BYTES_PER_TOKEN: Final = 3
"""English has about four bytes a token, code and JSON about three."""

IMAGE_TOKENS: Final = 1600
"""The most an image counts after the API has scaled it (https://platform.claude.com/docs, vision)."""


def estimated_input(request: Mapping[str, Any]) -> int:
    """Return the tokens of a request's system prompt, tools and messages."""
    return estimated_prefix(request) + estimated(request.get("messages"))


def estimated_prefix(request: Mapping[str, Any]) -> int:
    """Return the tokens of a request's system prompt and tools alone."""
    prefix = [request[part] for part in ("system", "tools") if request.get(part)]
    return estimated(prefix) if prefix else 0


def estimated_text(characters: int) -> int:
    """Return the tokens of that many characters of a reply."""
    return -(-characters // BYTES_PER_TOKEN)


def estimated(value: Any) -> int:
    """Return the tokens of a part of a request: messages, a message, its blocks, a text.

    Counted as the JSON that is sent, which is ten times as fast as walking through it; but an image counts
    by its size on the screen.
    """
    size = dump_bytes(value)
    tokens = -(-len(size) // BYTES_PER_TOKEN)
    if b'"image"' in size:
        tokens += sum(IMAGE_TOKENS - len(dump_bytes(one)) // BYTES_PER_TOKEN for one in _images(value))
    return tokens


def _images(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping) and value.get("type") == "image":
        yield value
    elif isinstance(value, Mapping):
        yield from _images(value.get("content"))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _images(item)


FROM_TOKENS: Final = 1000
"""Requests below this many tokens say nothing about the estimate."""

LEAST_FACTOR: Final = 0.4
MOST_FACTOR: Final = 4.0
LEAST_WINDOW: Final = 2000
MODELS: Final = 100
"""Models whose figures are remembered."""

LEAST_OUTPUT: Final = 256
"""Tokens that are asked for at least, however full the window seems."""

LEARNT_MS: Final = 600_000.0
"""How long what a refusal said about sizes is believed: servers are started anew with other limits."""

SPARE: Final = 16
"""Tokens that the output leaves free in the window."""


@dataclass(slots=True)
class _Learnt:
    """What a model's answers told: real tokens to estimated ones, and sizes that its refusals named."""

    factor: float = 1.0
    window: int | None = None
    output: int | None = None
    until: float = 0.0

    def believed(self, size: int | None) -> int | None:
        return size if monotonic_ms() < self.until else None


class Windows:
    """Windows of the settings, and what this process learnt about models, each at its address."""

    def __init__(self, settings: History) -> None:
        self._settings = settings
        self._learnt: dict[Target, _Learnt] = {}

    def tokens(self, targets: Iterable[Target]) -> int:
        """Return the smallest window of these models, in tokens: input and output together."""
        return min(self._window(target) for target in targets)

    def full_at(self, window: int, output: int, prefix: int) -> int:
        """Return the input tokens from which on a conversation is compacted.

        The output has its room, but not more than half of what instructions and tools (``prefix``) leave.
        """
        room = min(output, max((window - prefix) // 2, LEAST_OUTPUT))
        return min(int(window * self._settings.compact_at), window - room)

    def output(self, targets: Sequence[Target], window: int, estimate: int) -> int:
        """Return the most output tokens that a request of so many estimated tokens leaves room for."""
        room = window - SPARE - math.ceil(estimate * self.factor(targets))
        named = [one.believed(one.output) for one in map(self._of, targets)]
        return min([max(room, LEAST_OUTPUT), *(most for most in named if most)])

    def factor(self, targets: Iterable[Target]) -> float:
        """Return by what an estimate is multiplied for these models."""
        return max(self._of(target).factor for target in targets)

    def learn(self, estimate: int, reply: Reply) -> None:
        """Compare an estimate with what the model's API counted."""
        usage = reply.usage
        counted = usage.tokens - usage.output_tokens
        if min(estimate, counted) >= FROM_TOKENS:
            self._keep(reply.asked or Target(reply.model)).factor = _within(counted / estimate)

    def refused(self, target: Target, estimate: int, error: ModelError) -> int | None:
        """Learn from the API's refusal of a request that was too large.

        Returns a guess at the window, for the refused conversation alone, if no size was named.
        """
        learnt = self._keep(target)
        if error.tokens and error.tokens >= FROM_TOKENS:
            learnt.factor = _within(error.tokens / max(estimate, 1))
        if error.window is not None or error.output is not None:
            learnt.window = error.window and max(error.window, LEAST_WINDOW)
            learnt.output = error.output
            learnt.until = monotonic_ms() + LEARNT_MS
            return None
        if error.status == 413 or error.reason != "too_long":
            return None
        # It may be any size, but not larger than what was refused.
        return max(min(int(estimate * learnt.factor), self._window(target)), LEAST_WINDOW)

    def _window(self, target: Target) -> int:
        model = target.model
        named = [name for name in self._settings.windows if model == name or model.startswith(f"{name}-")]
        window = self._settings.windows[max(named, key=len)] if named else self._settings.window
        learnt = self._of(target)
        return min(window, learnt.believed(learnt.window) or window)

    def _of(self, target: Target) -> _Learnt:
        return self._learnt.get(target) or _Learnt()

    def _keep(self, target: Target) -> _Learnt:
        if target not in self._learnt and len(self._learnt) >= MODELS:
            del self._learnt[next(iter(self._learnt))]
        return self._learnt.setdefault(target, _Learnt())


def _within(factor: float) -> float:
    return min(max(factor, LEAST_FACTOR), MOST_FACTOR)


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of one request, in real tokens as far as they are known; ``factor`` made them from estimates."""

    prefix: int
    full_at: int
    window: int
    output: int
    factor: float

    @property
    def room(self) -> int:
        """What is left for messages before they are shortened."""
        return self.full_at - self.prefix


class Window:
    """Keeps one agent's messages within its models' window.

    The messages are shortened in place; only what came since the last look is measured. Requests are given
    without messages: system prompt, tools and the output that is asked for.
    """

    def __init__(self, windows: Windows, counted: int = 0, tokens: int = 0) -> None:
        self._windows = windows
        self._counted, self._tokens = counted, tokens
        self._prefix: int | None = None
        self._guess: int | None = None

    async def shorten(
        self, messages: list[Message], request: dict[str, Any], model: Model, *, anyway: bool = False
    ) -> bool:
        """Shorten the messages, also if they seem to fit (``anyway``); return whether that was possible.

        Raises TooLong.
        """
        raise NotImplementedError

    async def mended(self, messages: list[Message], kinds: Sequence[str]) -> None:
        """Keep leaving out the kinds of blocks that the API refused."""

    async def fit(self, messages: list[Message], request: dict[str, Any], model: Model) -> None:
        """Shorten the messages if the request comes near the window. Raises TooLong."""
        sizes = self._sizes(request, model)
        if self._measured(messages, sizes) > sizes.room:
            await self.shorten(messages, request, model)

    async def refused(
        self, messages: list[Message], request: dict[str, Any], model: Model, error: ModelError
    ) -> bool:
        """Shorten the messages if the API refused them for a size; return whether another try is worth it."""
        if not error.reason:
            return False
        estimate = self.estimate(messages, request)
        for target in (error.asked,) if error.asked else model.targets:
            self._guess = self._windows.refused(target, estimate, error) or self._guess
        return error.reason == "max_tokens" or await self.shorten(messages, request, model, anyway=True)

    def output(self, messages: list[Message], request: dict[str, Any], model: Model) -> int:
        """Return the most output tokens that the window leaves room for."""
        estimate = self.estimate(messages, request)
        return self._windows.output(model.targets, self._window(model), estimate)

    def answered(self, messages: list[Message], request: dict[str, Any], reply: Reply) -> None:
        """Learn from what the API counted for a request of these messages."""
        self._windows.learn(self.estimate(messages, request), reply)

    def estimate(self, messages: list[Message], request: dict[str, Any]) -> int:
        """Return an estimate of the request's tokens, on the high side."""
        return self._estimated_prefix(request) + self._estimated(messages)

    def _changed(self) -> None:
        """Measure the messages from their beginning, the next time."""
        self._counted, self._tokens = 0, 0

    def _measured(self, messages: list[Message], sizes: Sizes) -> int:
        return int(self._estimated(messages) * sizes.factor)

    def _estimated(self, messages: list[Message]) -> int:
        self._tokens += sum(map(estimated, messages[self._counted :]))
        self._counted = len(messages)
        return self._tokens

    def _estimated_prefix(self, request: dict[str, Any]) -> int:
        if self._prefix is None:
            self._prefix = estimated_prefix(request)
        return self._prefix

    def _sizes(self, request: dict[str, Any], model: Model) -> Sizes:
        output = request["max_tokens"]
        factor = self._windows.factor(model.targets)
        window = self._window(model)
        prefix = int(self._estimated_prefix(request) * factor)
        return Sizes(
            prefix=prefix,
            full_at=self._windows.full_at(window, output, prefix),
            window=window,
            output=min(output, window // 2),
            factor=factor,
        )

    def _window(self, model: Model) -> int:
        window = self._windows.tokens(model.targets)
        return min(window, self._guess or window)

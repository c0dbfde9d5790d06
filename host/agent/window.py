"""How much fits into a model's window, and how far the estimate of a request is off."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from host.ports import Message, Model, ModelError, Reply, Target
from shared.clock import monotonic_ms
from shared.jsons import dump_bytes
from shared.settings.sections import History
from shared.values import Block

BYTES_PER_TOKEN: Final = 3
"""English has about four bytes a token, code and JSON about three."""

IMAGE_TOKENS: Final = 1600
"""The most an image counts after the API has scaled it (https://platform.claude.com/docs, vision)."""


PAGE_TOKENS: Final = 3000
"""The most that a page of a PDF usually counts (https://platform.claude.com/docs, PDF support)."""


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
    if b'"image"' in size or b'"document"' in size:
        tokens += sum(_weight(one) - len(dump_bytes(one)) // BYTES_PER_TOKEN for one in shown(value))
    return tokens


def _weight(block: Mapping[str, Any]) -> int:
    pages = block["source"].get("pages", 1)
    return IMAGE_TOKENS if block["type"] == "image" else PAGE_TOKENS * int(pages)


def shown(value: Any) -> Iterator[Block]:
    """Yield the pictures and documents in messages, a message, blocks, those of tools' results too."""
    if isinstance(value, dict) and value.get("type") in ("image", "document"):
        yield value
    elif isinstance(value, Mapping):
        yield from shown(value.get("content"))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from shown(item)


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


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a run's models together, in tokens.

    ``window``: input and output of the smallest. ``factor``: by what an estimate is multiplied.
    ``most_output``: what the least of them writes, None if none has refused more.
    """

    window: int
    factor: float
    most_output: int | None

    def output(self, estimate: int) -> int:
        """Return the most output that a request of so many estimated tokens leaves room for."""
        room = max(self.window - SPARE - math.ceil(estimate * self.factor), LEAST_OUTPUT)
        return room if self.most_output is None else min(room, self.most_output)


class Windows:
    """Windows of the settings, and what this process learnt about models, each at its address."""

    def __init__(self, settings: History) -> None:
        self._settings = settings
        self._learnt: dict[Target, _Learnt] = {}

    def of(self, targets: Iterable[Target]) -> Known:
        """Return what is known of these models."""
        now = monotonic_ms()
        windows, factors, outputs = [], [], []
        for target in targets:
            learnt = self._learnt.get(target) or _Learnt()
            named = learnt.window if now < learnt.until else None
            windows.append(min(self._of_settings(target.model), named or math.inf))
            factors.append(learnt.factor)
            outputs.append(learnt.output if now < learnt.until else None)
        most = min((output for output in outputs if output), default=None)
        return Known(int(min(windows)), max(factors), most)

    def full_at(self, window: int, output: int, prefix: int) -> int:
        """Return the input tokens from which on a conversation is compacted.

        The output has its room, but not more than half of what instructions and tools (``prefix``) leave.
        """
        room = min(output, max((window - prefix) // 2, LEAST_OUTPUT))
        return min(int(window * self._settings.compact_at), window - room)

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
        return max(min(int(estimate * learnt.factor), self.of([target]).window), LEAST_WINDOW)

    def _of_settings(self, model: str) -> int:
        named = [name for name in self._settings.windows if model == name or model.startswith(f"{name}-")]
        return self._settings.windows[max(named, key=len)] if named else self._settings.window

    def _keep(self, target: Target) -> _Learnt:
        if target not in self._learnt and len(self._learnt) >= MODELS:
            del self._learnt[next(iter(self._learnt))]
        return self._learnt.setdefault(target, _Learnt())


def _within(factor: float) -> float:
    return min(max(factor, LEAST_FACTOR), MOST_FACTOR)


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of one request, in tokens: ``estimate`` as it was estimated, all else times ``factor``.

    ``room``: what its messages may have before they are shortened. ``output``: what a reply may have.
    """

    estimate: int
    factor: float
    prefix: int
    messages: int
    room: int
    window: int
    output: int


@dataclass(eq=False)
class Window:
    """Keeps one agent's messages within its models' window.

    The messages are shortened in place; only what came since the last look is measured. Requests are given
    without messages: system prompt, tools and the output that is asked for.
    """

    windows: Windows
    _counted: int = 0
    _tokens: int = 0
    media: bool = False
    """Whether pictures or documents were seen in the messages."""
    prefix: int | None = None
    """What stands before the messages, None if that has to be measured."""
    _guess: int | None = None

    async def shorten(
        self, messages: list[Message], request: dict[str, Any], model: Model, *, anyway: bool = False
    ) -> bool:
        """Shorten the messages, also if they seem to fit (``anyway``); return whether that was possible.

        Raises TooLong.
        """
        raise NotImplementedError

    async def mended(self, messages: list[Message], kinds: Sequence[str]) -> None:
        """Keep leaving out the kinds of blocks that the API refused."""

    async def fit(self, messages: list[Message], request: dict[str, Any], model: Model) -> Sizes:
        """Shorten the messages if the request comes near the window; return its sizes. Raises TooLong."""
        sizes = self.sizes(messages, request, model)
        if sizes.messages <= sizes.room:
            return sizes
        await self.shorten(messages, request, model)
        return self.sizes(messages, request, model)

    async def refused(
        self, messages: list[Message], request: dict[str, Any], model: Model, error: ModelError
    ) -> bool:
        """Shorten the messages if the API refused them for a size; return whether another try is worth it."""
        if not error.reason:
            return False
        estimate = self.sizes(messages, request, model).estimate
        for target in (error.asked,) if error.asked else model.targets:
            self._guess = self.windows.refused(target, estimate, error) or self._guess
        return error.reason == "max_tokens" or await self.shorten(messages, request, model, anyway=True)

    def sizes(self, messages: list[Message], request: dict[str, Any], model: Model) -> Sizes:
        """Return the sizes of a request."""
        if self.prefix is None:
            self.prefix = estimated_prefix(request)
        new = messages[self._counted :]
        self._tokens += sum(map(estimated, new))
        self.media = self.media or any(shown(new))
        self._counted = len(messages)
        known = self.windows.of(model.targets)
        if self._guess is not None:
            known = replace(known, window=min(known.window, self._guess))
        prefix, estimate = int(self.prefix * known.factor), self.prefix + self._tokens
        return Sizes(
            estimate=estimate,
            factor=known.factor,
            prefix=prefix,
            messages=int(self._tokens * known.factor),
            room=self.windows.full_at(known.window, request["max_tokens"], prefix) - prefix,
            window=known.window,
            output=min(request["max_tokens"], known.output(estimate)),
        )

    def _changed(self) -> None:
        """Measure the messages from their beginning, the next time."""
        self._counted, self._tokens = 0, 0

"""How much fits into a model's window, and how far the estimate of a request is off."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from host.ports import ModelError, Reply, Target
from shared.clock import monotonic_ms
from shared.jsons import dump_bytes
from shared.settings.sections import History

ThinkingType = Literal["auto", "adaptive", "enabled"]

ADAPTIVE_SINCE: Final = (4, 6)
"""Claude models of this version take ``adaptive``, and sooner or later nothing else: the SDK warns of
``enabled`` for 4.6, and models from 4.7 on refuse it. Older ones know only ``enabled``."""

LEAST_THINKING: Final = 1024
"""Fewest thinking tokens the Messages API takes."""

_VERSION: Final = re.compile(r"claude-(?:[a-z]+-)?(\d{1,2})(?:[-.](\d{1,2}))?(?!\d)")
_UNNUMBERED: Final = ("claude-mythos-preview",)


def thinking_parameter(model: str, kind: ThinkingType, budget: int) -> dict[str, Any]:
    """Return the ``thinking`` parameter of a request to the model; ``budget`` is in tokens.

    ``auto`` goes by the version in the model's id; a model that is not a Claude gets a budget.
    """
    if kind == "adaptive" or (kind == "auto" and takes_adaptive(model)):
        # Newer models leave the text out unless asked for it.
        return {"type": "adaptive", "display": "summarized"}
    return {"type": "enabled", "budget_tokens": budget}


def within_output(request: dict[str, Any]) -> dict[str, Any]:
    """Return the request with a thinking budget below ``max_tokens``, none if there is too little room."""
    thinking = request.get("thinking") or {}
    if thinking.get("budget_tokens", 0) < request["max_tokens"]:
        return request
    budget = request["max_tokens"] // 2
    made = {**request, "thinking": {**thinking, "budget_tokens": budget}}
    if budget < LEAST_THINKING:
        del made["thinking"]
    return made


def takes_adaptive(model: str) -> bool:
    """Return whether the model decides by itself how much it thinks."""
    if any(name in model for name in _UNNUMBERED):
        return True
    found = _VERSION.search(model)
    return found is not None and (int(found[1]), int(found[2] or 0)) >= ADAPTIVE_SINCE


BYTES_PER_TOKEN: Final = 3
"""English has about four bytes a token, code and JSON about three."""

IMAGE_TOKENS: Final = 1600
"""The most an image counts after the API has scaled it (https://platform.claude.com/docs, vision)."""


def estimated_input(request: Mapping[str, Any]) -> int:
    """Return the tokens of a request's system prompt, tools and messages."""
    return estimated_prefix(request) + estimated(request.get("messages"))


def estimated_prefix(request: Mapping[str, Any]) -> int:
    """Return the tokens of a request's system prompt and tools alone.

    They are counted as the JSON that is sent: walking through twenty schemas takes ten times as long.
    """
    prefix = [request[part] for part in ("system", "tools") if request.get(part)]
    return -(-len(dump_bytes(prefix)) // BYTES_PER_TOKEN) if prefix else 0


def estimated_text(characters: int) -> int:
    """Return the tokens of that many characters of a reply."""
    return -(-characters // BYTES_PER_TOKEN)


def estimated(value: Any) -> int:
    """Return the tokens of a part of a request: a message, a block, a text."""
    if isinstance(value, str):
        return -(-len(value.encode()) // BYTES_PER_TOKEN)
    if isinstance(value, Mapping):
        if value.get("type") == "image":
            return IMAGE_TOKENS
        return sum(estimated(key) + estimated(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return sum(estimated(item) for item in value)
    return 0 if value is None else 1


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

"""How much fits into a model's window, and how far the estimate of a request is off."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from host.agent.models import Reply
from shared.settings.sections import History

FROM_TOKENS: Final = 1000
"""Requests below this many tokens say nothing about the estimate."""

LEAST_FACTOR: Final = 0.4
MOST_FACTOR: Final = 4.0
MODELS: Final = 100
"""Models whose figures are remembered."""


@dataclass(slots=True)
class _Learnt:
    """What a model's answers told: real tokens to estimated ones, and its window if it named it."""

    factor: float = 1.0
    window: int | None = None


class Windows:
    """Windows of the settings, and what this process learnt about models since it started."""

    def __init__(self, settings: History) -> None:
        self._settings = settings
        self._learnt: dict[str, _Learnt] = {}

    def tokens(self, models: Iterable[str]) -> int:
        """Return the smallest window of these models, in tokens: input and output together."""
        return min(self._window(model) for model in models)

    def full_at(self, models: Iterable[str], output: int) -> int:
        """Return the input tokens from which on a conversation is compacted, with so much room for output."""
        window = self.tokens(models)
        return min(int(window * self._settings.compact_at), window - min(output, window // 2))

    def factor(self, models: Iterable[str]) -> float:
        """Return by what an estimate is multiplied for these models."""
        return max(self._of(model).factor for model in models)

    def learn(self, model: str, estimate: int, reply: Reply) -> None:
        """Compare an estimate with what the model's API counted."""
        usage = reply.usage
        counted = usage.tokens - usage.output_tokens
        if min(estimate, counted) >= FROM_TOKENS:
            self._keep(model).factor = min(max(counted / estimate, LEAST_FACTOR), MOST_FACTOR)

    def refused(self, model: str, estimate: int, window: int | None) -> None:
        """The API found a request too long, for a window that it may have named."""
        learnt = self._keep(model)
        if window is not None and window >= FROM_TOKENS:
            learnt.window = min(window, self._window(model))
        least = self._window(model) / max(estimate, 1)
        learnt.factor = min(max(learnt.factor, least), MOST_FACTOR)

    def _window(self, model: str) -> int:
        named = [name for name in self._settings.windows if model == name or model.startswith(f"{name}-")]
        window = self._settings.windows[max(named, key=len)] if named else self._settings.window
        return min(window, self._of(model).window or window)

    def _of(self, model: str) -> _Learnt:
        return self._learnt.get(model) or _Learnt()

    def _keep(self, model: str) -> _Learnt:
        if model not in self._learnt and len(self._learnt) >= MODELS:
            del self._learnt[next(iter(self._learnt))]
        return self._learnt.setdefault(model, _Learnt())

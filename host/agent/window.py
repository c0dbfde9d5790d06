"""How much fits into a model's window, and how far the estimate of a request is off."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from host.agent.models import ModelError, Reply
from shared.settings.sections import History

FROM_TOKENS: Final = 1000
"""Requests below this many tokens say nothing about the estimate."""

LEAST_FACTOR: Final = 0.4
MOST_FACTOR: Final = 4.0
LEAST_WINDOW: Final = 2000
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
            self._keep(model).factor = _within(counted / estimate)

    def refused(self, model: str, estimate: int, error: ModelError) -> None:
        """Learn from the API's refusal of a request that was too long."""
        learnt = self._keep(model)
        if error.tokens and error.tokens >= FROM_TOKENS:
            learnt.factor = _within(error.tokens / max(estimate, 1))
        if error.window is not None:
            learnt.window = max(min(error.window, self._window(model)), LEAST_WINDOW)
        elif error.status == 400:
            # It may be any size, but not larger than what was refused.
            refused = int(estimate * learnt.factor)
            learnt.window = max(min(refused, self._window(model)), LEAST_WINDOW)

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


def _within(factor: float) -> float:
    return min(max(factor, LEAST_FACTOR), MOST_FACTOR)

"""How a model is asked to think: with a budget, or as it sees fit."""

from __future__ import annotations

import re
from typing import Any, Final, Literal

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

"""The window of a subagent: its messages are stored nowhere, so what is too long is cut in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from host.agent.compaction import CUT_CHARS
from host.agent.endings import TooLong
from host.agent.history import Message, cut
from host.agent.window import Windows, estimated, estimated_prefix
from host.ports import Model, ModelError, Reply

NEWEST: Final = 2
"""Messages at the end that stay whole: the last step and its results."""


class ChildWindow:
    """Implements the loop's Window: cuts the results of older steps, all at once, and thinking with them."""

    def __init__(self, windows: Windows) -> None:
        self._windows = windows
        self._guess: int | None = None

    async def fit(self, messages: list[Message], request: dict[str, Any], model: Model) -> bool:
        """Cut if the request comes near the window; raises TooLong if that isn't enough."""
        factor = self._windows.factor(model.targets)
        window = self._window(model)
        prefix = int(estimated_prefix(request) * factor)
        full_at = self._windows.full_at(window, request["max_tokens"], prefix)
        if self.estimate(messages, request) * factor <= full_at:
            return False
        changed = _cut_older(messages, request)
        if self.estimate(messages, request) * factor > window:
            raise TooLong("The task grew larger than the model's window; hand it on in smaller parts.")
        return changed

    def estimate(self, messages: list[Message], request: dict[str, Any]) -> int:
        """Return an estimate of the request's tokens, on the high side."""
        return estimated_prefix(request) + sum(estimated(message) for message in messages)

    async def refused(
        self, messages: list[Message], request: dict[str, Any], model: Model, error: ModelError
    ) -> bool:
        """Learn from a refusal, and cut; return whether another try is worth it."""
        if not error.reason:
            return False
        estimate = self.estimate(messages, request)
        for target in (error.asked,) if error.asked else model.targets:
            self._guess = self._windows.refused(target, estimate, error) or self._guess
        return error.reason == "max_tokens" or _cut_older(messages, request)

    async def mended(self, messages: list[Message], kinds: Sequence[str]) -> None:
        """Nothing of a child is stored, and for the run the model leaves them out itself."""

    def output(self, messages: list[Message], request: dict[str, Any], model: Model) -> int:
        """Return the most output tokens that the window leaves room for."""
        estimate = self.estimate(messages, request)
        return self._windows.output(model.targets, self._window(model), estimate)

    def _window(self, model: Model) -> int:
        window = self._windows.tokens(model.targets)
        return min(window, self._guess or window)

    async def overflowed(self, messages: list[Message], request: dict[str, Any], model: Model) -> None:
        """Cut after a reply that reached the window's end."""
        _cut_older(messages, request)

    def answered(self, messages: list[Message], request: dict[str, Any], reply: Reply) -> None:
        """Learn from what the API counted."""
        self._windows.learn(self.estimate(messages, request), reply)


def _cut_older(messages: list[Message], request: dict[str, Any]) -> bool:
    changed = False
    for at, message in enumerate(messages[:-NEWEST]):
        content = [cut(block, CUT_CHARS) for block in message["content"]]
        if content != message["content"]:
            messages[at] = {**message, "content": content}
            changed = True
    # Thinking on a budget has to stay in the running turn, which all of this is; other thinking must go.
    if changed and request.get("thinking", {}).get("type") != "enabled":
        _without_thinking(messages)
    return changed


def _without_thinking(messages: list[Message]) -> bool:
    changed = False
    for at, message in enumerate(messages):
        content = [block for block in message["content"] if "thinking" not in block["type"]]
        if content and len(content) < len(message["content"]):
            messages[at] = {**message, "content": content}
            changed = True
    return changed

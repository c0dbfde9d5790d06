"""The agent loop: ask the model, run its tools, append, until it is finished."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import anyio

from host.agent.endings import IterationLimit, ModelFailed, Paused, Refused
from host.agent.history import Message, with_breakpoints
from host.agent.keyed_model import KeyedModel
from host.agent.models import Delta, ModelError, Reply
from host.agent.toolbox import Toolbox, batches, result_block
from host.tools.base import ToolResult
from shared.models import Block

RETRIES: Final = 4
"""How often a failed step is tried again, within the run's time."""

FIRST_BACKOFF_S: Final = 0.5
LONGEST_BACKOFF_S: Final = 20.0

OVERLOADED: Final = frozenset({503, 529})
"""Statuses after which, once the retries are used up, another model may do better."""


class Recorder(Protocol):
    """Who hears what happens: it tells the readers and stores the steps."""

    async def delta(self, delta: Delta) -> None:
        """A piece of the reply in flight."""
        ...

    async def retrying(self) -> None:
        """The reply in flight failed; it begins anew."""
        ...

    async def replied(self, reply: Reply, *, final: bool, effect_ahead: bool = False) -> None:
        """A whole reply: the last one, or one whose tools (with effects: ``effect_ahead``) run next."""
        ...

    async def cut_short(self, reply: Reply) -> None:
        """A reply that the budget left no room to finish: it costs, but is not kept."""
        ...

    async def called(self, call: Block, result: ToolResult) -> None:
        """A tool answered."""
        ...

    async def answered(self, results: Sequence[Block]) -> None:
        """All tools of the reply answered."""
        ...


class Budget(Protocol):
    """Who says what a model call may use."""

    async def reserve(self, request: dict[str, Any], models: Sequence[str]) -> dict[str, Any]:
        """Return the request with a ``max_tokens`` that can be afforded on any of these; raises Paused."""
        ...

    def cut_short(self) -> Paused:
        """Return the ending of a run whose last reply was cut short by that ``max_tokens``."""
        ...


@dataclass(frozen=True, slots=True)
class Options:
    """What a run asks of the model."""

    max_tokens: int
    max_iterations: int
    system: Sequence[Block]
    thinking_tokens: int | None = None
    backoff_s: float = FIRST_BACKOFF_S


@dataclass(slots=True)
class AgentLoop:
    """One run of the loop over one conversation's messages.

    The first of ``models`` answers; once it stays overloaded the next one does, to the end of the run.
    """

    models: Sequence[KeyedModel]
    toolbox: Toolbox
    recorder: Recorder
    options: Options
    budget: Budget | None = None
    sleep: Callable[[float], Awaitable[None]] = field(default=anyio.sleep)

    async def run(self, messages: list[Message]) -> Reply:
        """Append to ``messages`` until the model has finished; return its last reply. Raises Ending."""
        for _ in range(self.options.max_iterations):
            reply = await self._step(messages)
            if reply.blocks:
                messages.append({"role": "assistant", "content": reply.blocks})
            if reply.stop_reason == "pause_turn":
                await self.recorder.replied(reply, final=False)
                continue
            if not reply.tool_uses:
                await self.recorder.replied(reply, final=True)
                return reply
            effect_ahead = any(not self.toolbox.read_only(call["name"]) for call in reply.tool_uses)
            await self.recorder.replied(reply, final=False, effect_ahead=effect_ahead)
            results = await self._call_tools(reply)
            messages.append({"role": "user", "content": results})
            await self.recorder.answered(results)
        raise IterationLimit(
            f"The run used its {self.options.max_iterations} steps without coming to an end; "
            "its finished steps are in the history."
        )

    async def _step(self, messages: list[Message]) -> Reply:
        while True:
            model, *others = self.models
            request = self._request(messages)
            if self.budget is not None:
                request = await self.budget.reserve(request, model.ids)
            try:
                reply = await self._tries(model, request)
            except ModelError as error:
                if error.status not in OVERLOADED or not others:
                    raise ModelFailed(error.message) from error
                self.models = others
                await self.recorder.retrying()
                continue
            if reply.stop_reason == "refusal":
                raise Refused("The model declined to answer this.")
            if reply.stop_reason == "max_tokens" and request["max_tokens"] < self.options.max_tokens:
                await self._cut_short(reply)
            return reply

    async def _tries(self, model: KeyedModel, request: dict[str, Any]) -> Reply:
        for attempt in range(RETRIES):
            try:
                return await model.reply(request, self.recorder.delta)
            except ModelError as error:
                if not error.retryable:
                    raise
                await self.recorder.retrying()
                await self.sleep(self._pause(attempt, error.retry_after_s))
        return await model.reply(request, self.recorder.delta)

    async def _cut_short(self, reply: Reply) -> None:
        """Pause instead of taking what was cut off for an answer; the step is asked for anew."""
        if self.budget is not None:
            await self.recorder.cut_short(reply)
            raise self.budget.cut_short()

    def _pause(self, attempt: int, retry_after_s: float | None) -> float:
        backoff = min(self.options.backoff_s * 2**attempt, LONGEST_BACKOFF_S)
        return backoff if retry_after_s is None else max(retry_after_s, 0.0)

    def _request(self, messages: list[Message]) -> dict[str, Any]:
        request: dict[str, Any] = {
            "max_tokens": self.options.max_tokens,
            "system": list(self.options.system),
            "messages": with_breakpoints(messages),
        }
        tools = self.toolbox.definitions()
        if tools:
            request["tools"] = tools
        if self.options.thinking_tokens is not None:
            request["thinking"] = {"type": "enabled", "budget_tokens": self.options.thinking_tokens}
        return request

    async def _call_tools(self, reply: Reply) -> list[Block]:
        """Run the reply's calls, independent ones side by side; results come in the order of the calls."""
        results: dict[str, Block] = {}
        for group in batches(reply.tool_uses, self.toolbox):
            async with anyio.create_task_group() as tasks:
                for call in group:
                    tasks.start_soon(self._call_tool, call, reply.malformed.get(call["id"]), results)
        return [results[call["id"]] for call in reply.tool_uses]

    async def _call_tool(self, call: Block, malformed: str | None, results: dict[str, Block]) -> None:
        if malformed is None:
            result = await self.toolbox.call(call["name"], call["input"])
        else:
            result = ToolResult("The call's input was not a complete JSON object; call again.", is_error=True)
        results[call["id"]] = result_block(call["id"], result)
        await self.recorder.called(call, result)

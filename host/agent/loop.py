"""The agent loop: ask the model, run its tools, append, until it is finished."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import anyio

from host.agent.endings import IterationLimit, ModelFailed, Refused
from host.agent.history import Message, with_breakpoints
from host.agent.models import Delta, ModelError, ModelPort, Reply
from host.agent.toolbox import Toolbox, batches, result_block
from host.tools.base import ToolResult
from shared.models import Block

RETRIES: Final = 4
"""How often a failed step is tried again, within the run's time."""

FIRST_BACKOFF_S: Final = 0.5
LONGEST_BACKOFF_S: Final = 20.0


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

    async def called(self, call: Block, result: ToolResult) -> None:
        """A tool answered."""
        ...

    async def answered(self, results: Sequence[Block]) -> None:
        """All tools of the reply answered."""
        ...


@dataclass(frozen=True, slots=True)
class Options:
    """What a run asks of the model."""

    model: str
    max_tokens: int
    max_iterations: int
    system: Sequence[Block]
    thinking_tokens: int | None = None
    backoff_s: float = FIRST_BACKOFF_S


@dataclass(slots=True)
class AgentLoop:
    """One run of the loop over one conversation's messages."""

    model: ModelPort
    toolbox: Toolbox
    recorder: Recorder
    options: Options
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
        request = self._request(messages)
        for attempt in range(RETRIES + 1):
            try:
                reply = await self.model.reply(request, self.recorder.delta)
            except ModelError as error:
                if not error.retryable or attempt == RETRIES:
                    raise ModelFailed(error.message) from error
                await self.recorder.retrying()
                await self.sleep(self._pause(attempt, error.retry_after_s))
                continue
            if reply.stop_reason == "refusal":
                raise Refused("The model declined to answer this.")
            return reply
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _pause(self, attempt: int, retry_after_s: float | None) -> float:
        backoff = min(self.options.backoff_s * 2**attempt, LONGEST_BACKOFF_S)
        return backoff if retry_after_s is None else max(retry_after_s, 0.0)

    def _request(self, messages: list[Message]) -> dict[str, Any]:
        request: dict[str, Any] = {
            "model": self.options.model,
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

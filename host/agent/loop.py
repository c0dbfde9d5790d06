"""The agent loop: ask the model, run its tools, append, until it is finished."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol

import anyio

from host.agent.endings import Ending, IterationLimit, ModelFailed, Refused, TooLong
from host.agent.history import Message, with_breakpoints
from host.agent.progress import Progress
from host.agent.toolbox import Toolbox, batches, result_block
from host.agent.window import ThinkingType, thinking_parameter, within_output
from host.ports import Model, ModelError, Recorder, Reply, ToolResult
from shared.values import Block

RETRIES: Final = 4
"""How often a failed step is tried again, within the run's time."""

FIRST_BACKOFF_S: Final = 0.5
LONGEST_BACKOFF_S: Final = 20.0

OVERLOADED: Final = frozenset({429, 503, 529})
"""Statuses after which, once the retries are used up, another model may do better."""

MALFORMED: Final = "The call's input was not a complete JSON object of a few levels; call again."

ASK_FOR_WORDS: Final = (
    "<notice>Your last answer has no text, so there is nothing to read. Say now in a sentence or two what "
    "you did and what came of it, in the form that you were asked for.</notice>"
)


class Window(Protocol):
    """Who keeps the messages within the model's window; it shortens them in place, and raises TooLong."""

    async def fit(self, messages: list[Message], request: dict[str, Any], model: Model) -> bool:
        """Return whether the messages had to be shortened before the request is made."""
        ...

    def estimate(self, messages: list[Message], request: dict[str, Any]) -> int:
        """Return an estimate of the request's tokens, on the high side."""
        ...

    async def refused(
        self, messages: list[Message], request: dict[str, Any], model: Model, error: ModelError
    ) -> bool:
        """Return whether the messages were changed so that a refused request is worth another try."""
        ...

    async def overflowed(self, messages: list[Message], request: dict[str, Any], model: Model) -> None:
        """Shorten the messages after a reply that reached the window's end."""
        ...

    async def mended(self, messages: list[Message], kinds: Sequence[str]) -> None:
        """Keep leaving out the kinds of blocks that the API refused."""
        ...

    def output(self, messages: list[Message], request: dict[str, Any], model: Model) -> int:
        """Return the most output tokens that the window leaves room for."""
        ...

    def answered(self, messages: list[Message], request: dict[str, Any], reply: Reply) -> None:
        """Learn from what the API counted."""
        ...


@dataclass(frozen=True, slots=True)
class Options:
    """What a run asks of the model."""

    max_tokens: int
    max_iterations: int
    system: Sequence[Block]
    thinking_tokens: int | None = None
    thinking_type: ThinkingType = "auto"
    backoff_s: float = FIRST_BACKOFF_S


@dataclass(slots=True)
class AgentLoop:
    """One run of the loop over one conversation's messages.

    The first of ``models`` answers; once it stays overloaded the next one does, to the end of the run.
    """

    models: Sequence[Model]
    toolbox: Toolbox
    recorder: Recorder
    options: Options
    window: Window | None = None
    sleep: Callable[[float], Awaitable[None]] = field(default=anyio.sleep)
    granted: int = field(default=0, init=False)
    """``max_tokens`` of the newest request."""

    async def run(self, messages: list[Message]) -> Reply:
        """Append to ``messages`` until the model has finished; return its last reply. Raises Ending."""
        progress, asked = Progress(self.toolbox.read_only), False
        for _ in range(self.options.max_iterations):
            reply = await self._step(messages)
            if reply.blocks:
                messages.append({"role": "assistant", "content": reply.blocks})
            if reply.tool_uses:
                await self._work(reply, messages, progress)
            elif reply.stop_reason == "pause_turn" and reply.blocks:
                await self.recorder.replied(reply, final=False)
            elif reply.text.strip() or asked or not self.recorder.awaited:
                await self.recorder.replied(reply, final=True)
                return reply
            else:
                asked = True
                await self._ask_for_words(reply, messages)
        raise IterationLimit(
            f"The run used its {self.options.max_iterations} steps without coming to an end; "
            "its finished steps are in the history."
        )

    async def _work(self, reply: Reply, messages: list[Message], progress: Progress) -> None:
        """Run the reply's calls. Raises CutOff or NoProgress when that leads nowhere."""
        effect_ahead = any(not self.toolbox.read_only(call["name"]) for call in reply.tool_uses)
        await self.recorder.replied(reply, final=False, effect_ahead=effect_ahead)
        results = await self._call_tools(reply, progress)
        notes = progress.notes(reply.tool_uses, results)
        blocks = [result_block(call, result, notes.get(call)) for call, result in results.items()]
        messages.append({"role": "user", "content": blocks})
        await self.recorder.answered(blocks)
        progress.check()

    async def _ask_for_words(self, reply: Reply, messages: list[Message]) -> None:
        if reply.blocks:
            await self.recorder.replied(reply, final=False)
        else:
            await self.recorder.unused(reply)
        asked: Block = {"type": "text", "text": ASK_FOR_WORDS}
        messages.append({"role": "user", "content": [asked]})
        await self.recorder.answered([asked])

    async def _step(self, messages: list[Message]) -> Reply:
        mended: set[str] = set()
        while True:
            model, *others = self.models
            request = await self._fitting(messages, model)
            room = request["max_tokens"]
            known = None if self.window is None else self.window.estimate(messages, request)
            request = await self.recorder.reserve(request, model.ids, known)
            self.granted = request["max_tokens"]
            try:
                reply = await self._tries(model, within_output(request))
            except ModelError as error:
                if await self._mend(messages, request, model, error, mended):
                    continue
                if error.status not in OVERLOADED or not others:
                    raise _failed(error) from error
                self.models = others
                await self.recorder.retrying()
                continue
            if await self._overflowed(messages, request, model, reply, mended):
                continue
            if reply.stop_reason == "refusal":
                await self.recorder.unused(reply)
                raise Refused(
                    "The model declined to answer this. It isn't sent again: go on with a new message."
                )
            if reply.stop_reason == "max_tokens" and request["max_tokens"] < room:
                # It is no answer; the step is asked for anew once the run may go on.
                raise await self.recorder.cut_short(reply)
            if reply.left_out and self.window is not None:
                await self.window.mended(messages, reply.left_out)
            if self.window is not None:
                self.window.answered(messages, request, reply)
            return replace(reply, blocks=_sendable(reply.blocks))

    async def _fitting(self, messages: list[Message], model: Model) -> dict[str, Any]:
        """Return the next request, of messages that were shortened if need be."""
        request = self._request(messages, model)
        if self.window is not None and await self.window.fit(messages, request, model):
            request = self._request(messages, model)
        if self.window is not None:
            most = self.window.output(messages, request, model)
            request["max_tokens"] = min(request["max_tokens"], most)
        return request

    async def _mend(
        self,
        messages: list[Message],
        request: dict[str, Any],
        model: Model,
        error: ModelError,
        mended: set[str],
    ) -> bool:
        """Change the messages if that is what the API wants; once for each reason."""
        if self.window is None or error.reason in mended:
            return False
        mended.add(error.reason)
        if not await self.window.refused(messages, request, model, error):
            return False
        await self.recorder.retrying()
        return True

    async def _overflowed(
        self,
        messages: list[Message],
        request: dict[str, Any],
        model: Model,
        reply: Reply,
        mended: set[str],
    ) -> bool:
        """Make room after a reply that the window's end cut off, once; a second one counts as it is."""
        if reply.stop_reason != "model_context_window_exceeded" or self.window is None:
            return False
        if "too_long" in mended:
            return False
        mended.add("too_long")
        await self.recorder.retrying()
        await self.recorder.unused(reply)
        await self.window.overflowed(messages, request, model)
        return True

    async def _tries(self, model: Model, request: dict[str, Any]) -> Reply:
        for attempt in range(RETRIES):
            try:
                return await model.reply(request, self.recorder.delta)
            except ModelError as error:
                if not error.retryable or self._another_is_sooner(error):
                    raise
                await self.recorder.retrying()
                await self.sleep(self._pause(attempt, error.retry_after_s))
        return await model.reply(request, self.recorder.delta)

    def _another_is_sooner(self, error: ModelError) -> bool:
        overloaded = error.status in OVERLOADED and len(self.models) > 1
        return overloaded and (error.retry_after_s or 0.0) > LONGEST_BACKOFF_S

    def _pause(self, attempt: int, retry_after_s: float | None) -> float:
        backoff = min(self.options.backoff_s * 2**attempt, LONGEST_BACKOFF_S)
        return backoff if retry_after_s is None else max(retry_after_s, 0.0)

    def _request(self, messages: list[Message], model: Model) -> dict[str, Any]:
        request: dict[str, Any] = {
            "max_tokens": self.options.max_tokens,
            "system": list(self.options.system),
            "messages": with_breakpoints(messages),
        }
        tools = self.toolbox.definitions()
        if tools:
            request["tools"] = tools
        if self.options.thinking_tokens is not None:
            request["thinking"] = thinking_parameter(
                model.ids[0], self.options.thinking_type, self.options.thinking_tokens
            )
        return request

    async def _call_tools(self, reply: Reply, progress: Progress) -> dict[str, ToolResult]:
        """Run the reply's calls, independent ones side by side; results come in the order of the calls."""
        known = {call: ToolResult(MALFORMED, is_error=True, trusted=True) for call in reply.malformed}
        if reply.cut_call is not None:
            known[reply.cut_call] = progress.cut_result(reply, self.granted)
        results: dict[str, ToolResult] = {}
        for group in batches(reply.tool_uses, self.toolbox):
            async with anyio.create_task_group() as tasks:
                for call in group:
                    tasks.start_soon(self._call_tool, call, known.get(call["id"]), results)
        return {call["id"]: results[call["id"]] for call in reply.tool_uses}

    async def _call_tool(self, call: Block, known: ToolResult | None, results: dict[str, ToolResult]) -> None:
        result = results[call["id"]] = known or await self.toolbox.call(call["name"], call["input"])
        await self.recorder.called(call, result, speaks=self.toolbox.speaks(call["name"]))


def _sendable(blocks: list[Block]) -> list[Block]:
    """Return the blocks without thinking at their end, which the API doesn't take back there."""
    end = len(blocks)
    while end and "thinking" in blocks[end - 1]["type"]:
        end -= 1
    return blocks[:end]


def _failed(error: ModelError) -> Ending:
    return TooLong(error.sentence) if error.reason == "too_long" else ModelFailed(error.sentence)

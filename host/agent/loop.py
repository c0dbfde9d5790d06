"""The agent loop: ask the model, run its tools, append, until it is finished."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import anyio

from host.agent.asking import Asking, Options
from host.agent.endings import IterationLimit
from host.agent.progress import Progress
from host.agent.toolbox import Toolbox, batches, result_block
from host.agent.window import Window
from host.ports import Message, Model, Recorder, Reply, ToolResult
from shared.values import Block

MALFORMED: Final = "The call's input was not a complete JSON object of a few levels; call again."

ASK_FOR_WORDS: Final = (
    "<notice>Your last answer has no text, so there is nothing to read. Say now in a sentence or two what "
    "you did and what came of it, in the form that you were asked for.</notice>"
)


class AgentLoop:
    """One agent's work on one conversation's messages."""

    def __init__(
        self,
        models: Sequence[Model],
        toolbox: Toolbox,
        recorder: Recorder,
        options: Options,
        window: Window,
    ) -> None:
        self._asking = Asking(models, toolbox.definitions(), recorder, options, window)
        self._toolbox = toolbox
        self._recorder = recorder
        self._progress = Progress(toolbox.read_only)
        self._most = options.max_iterations

    async def run(self, messages: list[Message]) -> Reply:
        """Append to ``messages`` until the model has finished; return its last reply. Raises Ending."""
        asked_for_words = False
        for _ in range(self._most):
            reply = await self._asking.reply(messages)
            if reply.blocks:
                messages.append({"role": "assistant", "content": reply.blocks})
            if reply.tool_uses:
                await self._work(reply, messages)
            elif reply.stop_reason == "pause_turn" and reply.blocks:
                await self._recorder.replied(reply, final=False)
            elif reply.text.strip() or asked_for_words or not self._recorder.awaited:
                await self._recorder.replied(reply, final=True)
                return reply
            else:
                asked_for_words = True
                await self._ask_for_words(reply, messages)
        raise IterationLimit(
            f"The run used its {self._most} steps without coming to an end; "
            "its finished steps are in the history."
        )

    async def _work(self, reply: Reply, messages: list[Message]) -> None:
        """Run the reply's calls. Raises CutOff or NoProgress when that leads nowhere."""
        effect_ahead = any(not self._toolbox.read_only(call["name"]) for call in reply.tool_uses)
        await self._recorder.replied(reply, final=False, effect_ahead=effect_ahead)
        results = await self._call_tools(reply)
        notes = self._progress.notes(reply.tool_uses, results)
        blocks = [result_block(call, result, notes.get(call)) for call, result in results.items()]
        messages.append({"role": "user", "content": blocks})
        await self._recorder.answered(blocks)
        self._progress.check()

    async def _ask_for_words(self, reply: Reply, messages: list[Message]) -> None:
        if reply.blocks:
            await self._recorder.replied(reply, final=False)
        else:
            await self._recorder.unused(reply)
        asked: Block = {"type": "text", "text": ASK_FOR_WORDS}
        messages.append({"role": "user", "content": [asked]})
        await self._recorder.answered([asked])

    async def _call_tools(self, reply: Reply) -> dict[str, ToolResult]:
        """Run the reply's calls, independent ones side by side; results come in the order of the calls."""
        known = {call: ToolResult(MALFORMED, is_error=True, trusted=True) for call in reply.malformed}
        if reply.cut_call is not None:
            known[reply.cut_call] = self._progress.cut_result(reply, self._asking.granted)
        results: dict[str, ToolResult] = {}
        for group in batches(reply.tool_uses, self._toolbox):
            async with anyio.create_task_group() as tasks:
                for call in group:
                    tasks.start_soon(self._call_tool, call, known.get(call["id"]), results)
        return {call["id"]: results[call["id"]] for call in reply.tool_uses}

    async def _call_tool(self, call: Block, known: ToolResult | None, results: dict[str, ToolResult]) -> None:
        result = results[call["id"]] = known or await self._toolbox.call(call["name"], call["input"])
        await self._recorder.called(call, result, speaks=self._toolbox.speaks(call["name"]))

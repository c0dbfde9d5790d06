"""The agent loop: ask the model, run its tools, append, until it is finished."""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Final

import anyio

from host.agent.asking import Asking, Options, Recorder
from host.agent.endings import Asked, CutOff, Halted, IterationLimit, NoProgress
from host.agent.own_tools import FinalAnswer
from host.agent.toolbox import Toolbox, batches, result_block
from host.agent.window import Window
from host.ports import LIMITS, Message, Model, Reply, ToolResult
from shared.jsons import dump_bytes
from shared.untrusted import escaped
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
        final: FinalAnswer | None = None,
    ) -> None:
        self._asking = Asking(models, [], recorder, options, window)
        self._toolbox = toolbox
        self._recorder = recorder
        self._progress = Progress(toolbox.read_only)
        self._most = options.max_iterations
        self._final = final

    async def run(self, messages: list[Message]) -> Reply:
        """Append to ``messages`` until the model has finished; return its last reply. Raises Ending."""
        asked_for_words = False
        for _ in range(self._most):
            if self._toolbox.renew is not None:
                await self._toolbox.renew()
            self._asking.offer(self._toolbox.definitions())
            reply = await self._asking.reply(messages)
            if reply.blocks:
                messages.append({"role": "assistant", "content": reply.blocks})
            if reply.tool_uses:
                await self._work(reply, messages)
            elif reply.stop_reason == "pause_turn" and reply.blocks:
                await self._recorder.replied(reply, final=False)
            elif self._final is not None:
                await self._final.read(reply.text)
                if not self._final.given:
                    await self._ask_again(reply, messages, f"<notice>{escaped(self._final.again)}</notice>")
            elif reply.text.strip() or asked_for_words or not self._recorder.awaited:
                await self._recorder.replied(reply, final=True)
                return reply
            else:
                asked_for_words = True
                await self._ask_again(reply, messages, ASK_FOR_WORDS)
            if self._final is not None and self._final.is_over():
                answer = self._final.reply(reply)
                await self._recorder.replied(answer, final=True)
                return answer
        raise IterationLimit(
            f"The run used its {self._most} steps without coming to an end; "
            "its finished steps are in the history."
        )

    async def _work(self, reply: Reply, messages: list[Message]) -> None:
        """Run the reply's calls. Raises CutOff or NoProgress when that leads nowhere."""
        known = self._known(reply)
        whole = [call for call in reply.tool_uses if call["id"] not in known]
        asked, refused = await self._toolbox.held(whole)
        known |= refused
        waiting = {request.call_id for request in asked}
        calls = [call for call in reply.tool_uses if call["id"] not in waiting]
        effect_ahead = any(
            not self._toolbox.read_only(call["name"]) for call in calls if call["id"] not in known
        )
        await self._recorder.replied(reply, final=False, effect_ahead=effect_ahead)
        halted: dict[str, Halted] = {}
        results = await self._call_tools(calls, known, halted)
        asked += await self._toolbox.parked(calls, results)
        notes = self._progress.notes([call for call in calls if call["id"] in results], results)
        blocks = [result_block(call, result, notes.get(call)) for call, result in results.items()]
        if blocks:
            messages.append({"role": "user", "content": blocks})
            await self._recorder.answered(blocks)
        if asked or halted:
            raise Asked(asked, halted)
        self._progress.check()

    async def _ask_again(self, reply: Reply, messages: list[Message], notice: str) -> None:
        if reply.blocks:
            await self._recorder.replied(reply, final=False)
        else:
            await self._recorder.unused(reply)
        asked: Block = {"type": "text", "text": notice}
        messages.append({"role": "user", "content": [asked]})
        await self._recorder.answered([asked])

    def _known(self, reply: Reply) -> dict[str, ToolResult]:
        """Return the results of the reply's calls that can't be made."""
        known = {call: ToolResult(MALFORMED, is_error=True, trusted=True) for call in reply.malformed}
        if self._final is not None:
            self._final.cut(reply)
        if reply.cut_call is not None:
            known[reply.cut_call] = self._progress.cut_result(reply, self._asking.granted)
        return known

    async def _call_tools(
        self, calls: Sequence[Block], known: Mapping[str, ToolResult], halted: dict[str, Halted]
    ) -> dict[str, ToolResult]:
        """Run calls, independent ones side by side; results come in the order of the calls.

        ``halted`` gets those that have none yet.
        """
        results: dict[str, ToolResult] = {}
        for group in batches(calls, self._toolbox):
            async with anyio.create_task_group() as tasks:
                for call in group:
                    tasks.start_soon(self._call_tool, call, known.get(call["id"]), results, halted)
        return {call["id"]: results[call["id"]] for call in calls if call["id"] in results}

    async def _call_tool(
        self,
        call: Block,
        known: ToolResult | None,
        results: dict[str, ToolResult],
        halted: dict[str, Halted],
    ) -> None:
        try:
            result = results[call["id"]] = known or await self._toolbox.call(call["name"], call["input"])
        except Halted as waits:
            halted[call["id"]] = waits
            return
        await self._recorder.called(call, result, speaks=self._toolbox.spec(call["name"]).speaks)


TOLD_AFTER: Final = 3
"""Times that a call fails in the same way before the model is told."""

MOST_FAILURES: Final = 8
"""Times that a call may fail in the same way."""

MOST_CUT: Final = 2
"""Calls of a run that a limit may cut off."""

_TIMES: Final = re.compile(r"(?<!\d)\d+(?:\.\d+)? ?m?s\b")  # once for each row of digits, however long
"""How long a command took: it doesn't make its result another one."""

_CUT: Final = (
    "This call was not made: it was cut off at {limit}{size}. Do it in smaller parts. For a long file, write "
    "the first part with write_file and add the others with append_file, each in an answer of its own."
)
_AGAIN: Final = (
    "[host: this call has failed in the same way {times} times. Don't repeat it: change it, find another "
    "way, or say what stands in the way. After {most} times the run is ended.]"
)


@dataclass(slots=True)
class Progress:
    """What one run's calls came to, since it last got anywhere: a call with an effect did something new."""

    _read_only: Callable[[str], bool]
    _failures: Counter[bytes] = field(default_factory=Counter)
    _done: set[bytes] = field(default_factory=set)
    _cut: int = 0

    def cut_result(self, reply: Reply, max_tokens: int) -> ToolResult:
        """Return the result of the reply's call that a limit cut off."""
        self._cut += 1
        size = f" ({max_tokens:,} tokens)" if reply.stop_reason == "max_tokens" else ""
        text = _CUT.format(limit=LIMITS[reply.stop_reason], size=size)
        return ToolResult(text, is_error=True, trusted=True)

    def notes(self, calls: Sequence[Block], results: Mapping[str, ToolResult]) -> dict[str, str]:
        """Count a step's calls; return, by the id of a call, what its result has to say beside."""
        failed: dict[bytes, str] = {}
        for call in calls:
            result = results[call["id"]]
            if result.is_error:
                failed[_key(call, result.text)] = call["id"]
            elif not self._read_only(call["name"]) and (done := _key(call)) not in self._done:
                self._done.add(done)
                self._failures.clear()
        self._failures.update(failed.keys())
        return {
            call_id: _AGAIN.format(times=self._failures[key], most=MOST_FAILURES)
            for key, call_id in failed.items()
            if self._failures[key] >= TOLD_AFTER
        }

    def check(self) -> None:
        """Raise CutOff or NoProgress if the run is to end."""
        if self._cut >= MOST_CUT:
            raise CutOff(
                "The model's calls were cut off twice at the most that one answer may have (max_tokens). Ask "
                "for the work in smaller parts, or raise agents.defaults.max_tokens."
            )
        if max(self._failures.values(), default=0) >= MOST_FAILURES:
            raise NoProgress(
                f"The model repeated a call that failed {MOST_FAILURES} times in the same way. The finished "
                "steps are in the history: say how to go on."
            )


def _key(call: Block, result: str = "") -> bytes:
    asked = [call["name"], sorted(call["input"].items()), _TIMES.sub("", result)]
    return blake2b(dump_bytes(asked), digest_size=16).digest()

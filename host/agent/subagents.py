"""Subagents: child loops of a run, with a part of their parent's tools and never more than it has.

A child runs inside its parent's tool call, so it ends with it; it shares the sandbox, the tool-server
session (and so the ownership), the budget and the time of the run. Its own messages are kept only while a
call of it waits for a person: what it found out is the tool's result.

A step that people were asked about is finished here too, a run's own as a child's: ``Waited``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Final

import anyio
from pydantic import Field, ValidationError

from host.agent.asking import Options, Recorder
from host.agent.compaction import CUT_CHARS
from host.agent.endings import Asked, Ending, Halted, TooLong
from host.agent.history import cut
from host.agent.loop import AgentLoop
from host.agent.text import strip_internal
from host.agent.toolbox import REFUSED, Toolbox, result_block, without_secrets
from host.agent.window import Window, Windows
from host.ports import LIMITS, Message, Model, Reply, ToolResult, ToolSpec
from host.tools.arguments import refused
from shared import untrusted
from shared.approval_values import Approval, ApprovalStatus
from shared.tool_contract import Arguments
from shared.values import Block

Resume = Callable[[Mapping[str, Any], Mapping[str, Approval]], Awaitable[ToolResult]]
"""Goes on with a subagent from where it stopped, with what people said."""


@dataclass(frozen=True, slots=True)
class Waited:
    """Calls of one agent's step that people were asked about: its own, and those that began subagents."""

    calls: Sequence[Approval]
    stopped: Mapping[str, Any]
    step: Mapping[str, Approval]

    @classmethod
    def of(cls, state: Mapping[str, Any], step: Mapping[str, Approval]) -> Waited:
        """Return those of a subagent; ``step`` is what people said, by requests' ids."""
        own = [replace(step[each], call_id=call, subagent="") for call, each in state["waits"].items()]
        return cls(own, state["stopped"], step)

    def acts(self, toolbox: Toolbox) -> bool:
        """Return whether a call is to be made now that may have an effect."""
        return any(_may_run(each, toolbox) and not toolbox.read_only(each.tool) for each in self.calls)

    async def results(self, toolbox: Toolbox, resume: Resume) -> tuple[list[Block], Asked | None]:
        """Make the stored calls that were allowed, if they still may be, and go on with the subagents.

        Returns the results, and what is to be waited for next.
        """
        handed_on = [toolbox.handed_on(each) for each in self.calls if _may_run(each, toolbox)]
        asked = [request for request in handed_on if request is not None]
        others = [each for each in self.calls if each.call_id not in {request.call_id for request in asked}]
        runs = [each.call for each in others if _may_run(each, toolbox)]
        made = {call["id"]: await toolbox.call_again(call) for call in runs}
        asked += await toolbox.parked(runs, made)
        blocks = [result_block(call_id, result) for call_id, result in made.items()]
        blocks += [_told(each) for each in others if not _may_run(each, toolbox)]
        halted: dict[str, Halted] = {}
        async with anyio.create_task_group() as tasks:
            for call, state in self.stopped.items():
                tasks.start_soon(self._go_on, resume, call, state, blocks, halted)
        return blocks, Asked(asked, halted) if asked or halted else None

    async def _go_on(
        self,
        resume: Resume,
        call: str,
        state: Mapping[str, Any],
        blocks: list[Block],
        halted: dict[str, Halted],
    ) -> None:
        try:
            blocks.append(result_block(call, await resume(state, self.step)))
        except Halted as waits:
            halted[call] = waits


def _may_run(asked: Approval, toolbox: Toolbox) -> bool:
    allowed = asked.status is ApprovalStatus.ALLOWED
    return allowed and toolbox.refusal(asked.tool, asked.call["input"], asked=True) is None


def _told(asked: Approval) -> Block:
    if asked.status is ApprovalStatus.ALLOWED:
        return result_block(asked.call_id, ToolResult(REFUSED, is_error=True, trusted=True))
    return asked.result()


def add_results(messages: list[Message], blocks: list[Block]) -> None:
    """Put results to those of their step that are there already: all stand in one message."""
    if messages[-1]["role"] == "user":
        blocks = [*messages.pop()["content"], *blocks]
    messages.append({"role": "user", "content": blocks})


SPAWN: Final = "spawn"
LONGEST_TASK: Final = 64_000
"""Characters of a task."""


class Task(Arguments):
    """The tool's arguments."""

    task: str = Field(
        min_length=1,
        max_length=LONGEST_TASK,
        description="What to do and what to answer. The subagent knows nothing of this conversation, "
        "so say everything it needs",
    )
    tools: list[str] | None = Field(
        None, max_length=100, description="Names of the tools it may use; all of yours if left out"
    )
    max_iterations: int | None = Field(
        None, ge=1, le=1000, description="Model calls it may make; never more than you may"
    )


DEEPEST: Final = 2
"""Generations of subagents below a run's own agent."""

SIDE_BY_SIDE: Final = 4
"""Subagents of one generation that a run has at work at a time; more wait."""

NEWEST: Final = 2
"""Messages of a subagent that are never cut: its last step and the results."""

LONGEST_ANSWER: Final = 64 * 1024
"""Characters of an answer that the parent gets."""

ABOUT: Final = (
    "You are a subagent: the agent that people talk to gave you the task above. You know nothing else of "
    "their conversation, and nobody reads along. Your final answer goes back to that agent; make it complete."
)


@dataclass(frozen=True, slots=True)
class Parent:
    """What a child gets its part of."""

    models: Sequence[Model]
    tools: Toolbox
    options: Options
    recorder: Recorder
    windows: Windows


@cache
def _specs() -> tuple[ToolSpec, ...]:
    return (
        ToolSpec(
            SPAWN,
            "Hand a task to a subagent that works on its own, in the same workspace, and returns its final "
            "answer. Call it several times in one reply to work on independent parts side by side.",
            Task.model_json_schema(),
            delegable=False,
            speaks=True,
        ),
    )


@dataclass(slots=True)
class Subagents:
    """The tool ``spawn`` of one parent. ``label`` is the parent's name among the run's, such as ``2.1``."""

    _parent: Parent
    _label: str = ""
    _depth: int = 1
    _places: list[anyio.CapacityLimiter] = field(default_factory=list)
    _born: int = 0
    specs: Sequence[ToolSpec] = field(default_factory=_specs)

    def _place(self) -> anyio.CapacityLimiter:
        # One limit for each generation: a parent that waits for its children never keeps them from starting.
        if not self._places:
            self._places.extend(anyio.CapacityLimiter(SIDE_BY_SIDE) for _ in range(DEEPEST))
        return self._places[self._depth - 1]

    async def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        """Run one child to its end, whatever that is."""
        try:
            task = Task.model_validate(arguments)
        except ValidationError as error:
            return refused(error)
        if not task.task.strip():
            return ToolResult("task: must not be blank", is_error=True)
        names = self._parent.tools.delegable()
        unknown = sorted(set(task.tools or ()) - {*names, SPAWN})
        if unknown:
            return ToolResult(
                f"tools: there is no {', '.join(unknown)} to hand on; there is {', '.join([*names, SPAWN])}",
                is_error=True,
            )
        self._born += 1
        label = f"{self._label}.{self._born}" if self._label else str(self._born)
        async with self._place():
            return await self._converse(task, label, _messages(task))

    async def resume(self, state: Mapping[str, Any], step: Mapping[str, Approval]) -> ToolResult:
        """Go on with a child that waited, with what people said (by requests' ids). Raises Halted."""
        label = state["label"]
        self._born = max(self._born, int(label.rpartition(".")[2]))
        task = Task.model_validate(state["task"])
        async with self._place():
            return await self._converse(task, label, state["messages"], Waited.of(state, step))

    async def _converse(
        self, task: Task, label: str, messages: list[Message], waited: Waited | None = None
    ) -> ToolResult:
        child = self._child(task, label, sum(message["role"] == "assistant" for message in messages))
        below = Subagents(child, label, self._depth + 1, self._places)
        if self._depth < DEEPEST and (task.tools is None or SPAWN in task.tools):
            child.tools.add(below)
        window = ChildWindow(child.windows)
        loop = AgentLoop(child.models, child.tools, child.recorder, child.options, window)
        try:
            if waited is not None:
                blocks, again = await waited.results(child.tools, below.resume)
                add_results(messages, blocks)
                if again is not None:
                    raise again
            reply = await loop.run(messages)
        except Asked as asked:
            raise self._halted(asked, task, label, messages) from None
        except Ending as ending:
            return _unfinished(ending, messages)
        return _answer(reply)

    def _child(self, task: Task, label: str, steps: int) -> Parent:
        parent = self._parent
        names = parent.tools.delegable() if task.tools is None else task.tools
        most = min(task.max_iterations or parent.options.max_iterations, parent.options.max_iterations)
        return replace(
            parent,
            tools=parent.tools.subset({*names} - {SPAWN}),
            options=replace(parent.options, max_iterations=most - steps, stop=()),
            recorder=parent.recorder.child(label),
        )

    def _halted(self, asked: Asked, task: Task, label: str, messages: list[Message]) -> Halted:
        redactor = self._parent.tools.redactor
        state = {
            "task": task.model_dump(),
            "label": label,
            "messages": [
                {**each, "content": without_secrets(each["content"], redactor)} for each in messages
            ],
            "waits": {each.call_id: each.id for each in asked.requests if not each.subagent},
            "stopped": asked.stopped,
        }
        return Halted([replace(each, subagent=each.subagent or label) for each in asked.requests], state)


class ChildWindow(Window):
    """The window of a subagent: its messages are stored nowhere, so what is too long is cut in memory."""

    async def shorten(
        self, messages: list[Message], request: dict[str, Any], model: Model, *, anyway: bool = False
    ) -> bool:
        """Cut the results of older steps, all at once, and thinking with them."""
        changed = _cut_older(messages, request)
        self._changed()
        sizes = self.sizes(messages, request, model)
        if not anyway and sizes.prefix + sizes.messages > sizes.window:
            raise TooLong("The task grew larger than the model's window; hand it on in smaller parts.")
        return changed


def _messages(task: Task) -> list[Message]:
    asked = f'<task from="agent">{untrusted.escaped(task.task)}</task>'
    return [{"role": "user", "content": [{"type": "text", "text": asked}, {"type": "text", "text": ABOUT}]}]


def _answer(reply: Reply) -> ToolResult:
    text = _capped(strip_internal(reply.text).strip())
    if reply.stop_reason in LIMITS:
        limit = LIMITS[reply.stop_reason]
        cut = f"[host: the subagent's answer was cut off at {limit}; the rest is missing]"
        return ToolResult(f"{text}\n{cut}".strip(), is_error=True)
    return ToolResult(text) if text else ToolResult("The subagent ended without an answer.", is_error=True)


def _unfinished(ending: Ending, messages: list[Message]) -> ToolResult:
    last = strip_internal(_last_words(messages)).strip()
    so_far = f"\n\nWhat it said last:\n{_capped(last)}" if last else ""
    return ToolResult(f"The subagent did not finish: {ending.message}{so_far}", is_error=True)


def _last_words(messages: list[Message]) -> str:
    texts = (
        "".join(block["text"] for block in message["content"] if block["type"] == "text")
        for message in reversed(messages)
        if message["role"] == "assistant"
    )
    return next(filter(None, texts), "")


def _capped(text: str) -> str:
    if len(text) <= LONGEST_ANSWER:
        return text
    return f"{text[:LONGEST_ANSWER]}\n[cut: the answer has {len(text)} characters]"


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


def _without_thinking(messages: list[Message]) -> None:
    for at, message in enumerate(messages):
        content = [block for block in message["content"] if "thinking" not in block["type"]]
        if content:
            messages[at] = {**message, "content": content}

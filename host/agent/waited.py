"""An agent's step that people were asked about is finished: what they allowed is called, the rest is told."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import anyio

from host.agent.endings import Asked, Halted
from host.agent.toolbox import REFUSED, Toolbox, result_block
from host.ports import Message, ToolResult
from shared.approval_values import Approval, ApprovalStatus, NewApproval
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
        asked = [request for each in self.calls if (request := _handed_on(each, toolbox)) is not None]
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


def _handed_on(asked: Approval, toolbox: Toolbox) -> NewApproval | None:
    return toolbox.handed_on(asked) if _may_run(asked, toolbox) else None


def _told(asked: Approval) -> Block:
    if asked.status is ApprovalStatus.ALLOWED:
        return result_block(asked.call_id, ToolResult(REFUSED, is_error=True, trusted=True))
    return asked.result()


def add_results(messages: list[Message], blocks: list[Block]) -> None:
    """Put results to those of their step that are there already: all stand in one message."""
    if messages[-1]["role"] == "user":
        blocks = [*messages.pop()["content"], *blocks]
    messages.append({"role": "user", "content": blocks})

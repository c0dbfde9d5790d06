"""Turns what the agent loop reports into events for readers and rows for the store."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from host.agent.endings import Paused
from host.agent.own_tools import FinalAnswer
from host.agent.text import ShownText
from host.agent.toolbox import without_secrets
from host.ports import LIMITS, WHOLE, Delta, Reply, TextDelta, ThinkingDelta, ToolResult
from host.runs.events import EventLog
from host.runs.meter import NOTHING, AgentMeter, Ledger, RunBudget, RunMeter
from host.runs.spec import RunSpec, outbound_view
from host.tools.files_and_commands import SandboxToolset
from shared.approval_values import Approval
from shared.clock import now_ms
from shared.ids import MESSAGE, new_id
from shared.principals import Principal
from shared.store.sql.conversation_rows import Outbound
from shared.usage_values import Spending
from shared.values import Block, Compaction, Lease, NewMessage, Role

USE: Final = "server_tool_use"
_RESULT: Final = "_tool_result"
_SHOWN_RESULTS: Final = 5


def server_events(blocks: Sequence[Block]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the events ``tool_use`` and ``tool_result`` of a reply's blocks, in their order."""
    for block in blocks:
        kind = str(block["type"])
        if kind == USE:
            yield "tool_use", {"tool": block["name"], "input": block.get("input") or {}}
        elif kind.endswith(_RESULT):
            content = block.get("content")
            is_error = isinstance(content, Mapping) and "error_code" in content
            data = {"tool": kind.removesuffix(_RESULT), "is_error": is_error, "preview": _preview(content)}
            yield "tool_result", data


def _preview(content: Any) -> str:
    """Return the found pages' titles and addresses, a fetched page's address, or the error's code."""
    if isinstance(content, Mapping):
        return str(content.get("error_code") or content.get("url") or content.get("type") or "")
    found = [item for item in content or () if isinstance(item, Mapping)]
    lines = [f"{item.get('title', '')} — {item.get('url', '')}" for item in found[:_SHOWN_RESULTS]]
    more = len(found) - len(lines)
    return "\n".join([*lines, *([f"and {more} more"] if more else [])])


PREVIEW: Final = 500
"""Characters of a tool's result that its event shows."""

NO_ANSWER: Final = "The model ended without an answer. Ask what it did, or send the message again."
"""Told to people in its place."""


class RunRecorder(AgentMeter):
    """Implements ``Recorder`` for a run's own agent."""

    def __init__(
        self, ledger: Ledger, lease: Lease, spec: RunSpec, log: EventLog, principal: Principal
    ) -> None:
        self._store = ledger.store
        self._redactor = ledger.redactor
        self._lease = lease
        self._spec = spec
        self._log = log
        self._said_seq = lease.said_seq
        self._telling = asyncio.Lock()
        self.said: list[Outbound] = []
        self.warnings: list[str] = []
        self.title_of: Callable[[str], str] = str
        """Returns a tool's name for people."""
        self.compactions: list[str] = []
        self.shown = ShownText(ledger.redactor)
        self.typed: FinalAnswer | None = None
        """The answer, where it has a promised shape: no text is told before it."""
        super().__init__(RunMeter(ledger.prices))
        self.principal = principal
        own = principal.terms.budgets
        limited = ledger.prices.limited or own is not None or spec.allow_tokens is not None
        self.budget = RunBudget(ledger, lease, self, own or {}, spec.allow_tokens) if limited else None
        self.final: Reply | None = None
        self.files: SandboxToolset | None = None
        """The tools that know what was changed."""

    def delta(self, delta: Delta) -> None:
        """Tell a piece of the reply in flight."""
        if self.call is not None:
            self.heard(delta)
        if isinstance(delta, TextDelta) and self.typed is None:
            self._log.emit_text(self.shown.feed(delta.text))
        elif isinstance(delta, ThinkingDelta) and self._spec.thinking:
            self._log.emit("thinking", {"text": self._redactor.text(delta.text)})

    async def retrying(self) -> None:
        """The reply in flight begins anew."""
        self.shown.restart_step()

    @property
    def awaited(self) -> bool:
        """See ``Recorder.awaited``."""
        return not (self._spec.scheduled or self.said)

    def warn(self, sentence: str) -> None:
        """Put a warning into the answer, once."""
        if sentence not in self.warnings:
            self.warnings.append(sentence)

    async def replied(self, reply: Reply, *, final: bool, effect_ahead: bool = False) -> None:
        """Count the usage; store the step before its tools run, so that a crash finds it."""
        if final:
            self._judge(reply)
        self._log.emit_text(self.shown.end_step())
        await self.unused(reply)
        if final:
            self.final = reply
            if self.typed is not None:
                self._log.emit_text(self.shown.whole(reply.text))
            self.show_calls(reply)
            return
        await self._append("assistant", reply.blocks, effect_ahead=effect_ahead)
        self.show_calls(reply)

    async def cut_short(self, reply: Reply) -> Paused:
        """Count the usage of a reply that is not kept."""
        self._log.emit_text(self.shown.end_step())
        return await super().cut_short(reply)

    async def compacted(self, compaction: Compaction) -> Compaction:
        """Put a compaction in force, with what it cost, and tell it."""
        clean = replace(compaction, text=self._redactor.text(compaction.text), archived=False)
        made = await self._store.compactions.add(
            self._lease, clean, now_ms(), spent=self._unstored_spending()
        )
        self.meter.stored()
        self.compactions.append(made.kind)
        self._log.emit("compaction", {"kind": made.kind, "number": made.number})
        return made

    def show_calls(self, reply: Reply, **of: str) -> None:
        """Tell the calls of a reply to those who want to see them; ``of`` says whose they are."""
        if not self._spec.show_tool_use:
            return
        for name, data in server_events(reply.blocks):
            self._log.emit(name, {**_previewed(self._redactor.value(data)), **of})
        for call in reply.tool_uses:
            self._log.emit(
                "tool_use",
                {"tool": self.title_of(call["name"]), "input": self._redactor.value(call["input"]), **of},
            )

    async def called(self, call: Block, result: ToolResult, *, speaks: bool, **of: str) -> None:
        """Tell how a call ended, and what it made the conversation say."""
        if self._spec.show_tool_use:
            data = {"tool": self.title_of(call["name"]), "is_error": result.is_error, "preview": result.text}
            self._log.emit("tool_result", {**_previewed(data), **of})
        if speaks:
            await self.tell_said()

    def progressed(self, tool: str, data: Mapping[str, Any]) -> None:
        """Tell how far a call is that takes its time."""
        if self._spec.show_tool_use:
            message = self._redactor.text(data["message"][:PREVIEW])
            self._log.emit("tool_progress", {"tool": self.title_of(tool), **data, "message": message})

    async def answered(self, results: Sequence[Block]) -> None:
        """Store the step's results."""
        await self._append("user", list(results))

    async def acting(self) -> None:
        """Let whoever finds this run cut off know that the calls of its step may have been made."""
        await self._store.runs.append(self._lease, [], now_ms(), effect_ahead=True)

    async def finished_step(self, step: Sequence[Approval], results: Sequence[Block]) -> None:
        """Store the results of calls that people were asked about."""
        await self._append("user", list(results), ends_step=True)
        for each in step:
            self._log.emit("approval_resolved", {"id": each.id, "tool": each.tool, "status": each.status})

    def child(self, label: str) -> ChildRecorder:
        """Return the recorder of a subagent."""
        return ChildRecorder(self, label)

    async def tell_said(self) -> None:
        """Tell what the conversation said since the last look."""
        # One look at a time: tools that run side by side would tell the same message twice.
        async with self._telling:
            said = await self._store.outbound.said_by(self._lease.conversation_id, after=self._said_seq)
            for message in said:
                self._said_seq = message.seq
                self.said.append(message)
                view = dict(outbound_view(message, self._redactor))
                del view["conversation_id"]
                self._log.emit("message", view)

    def _judge(self, reply: Reply) -> None:
        """Say what is wrong with a last reply: nobody may take it for more than it is."""
        if not reply.text.strip() and self.awaited:
            self.warn(NO_ANSWER)
            self._log.emit_text(self.shown.feed(NO_ANSWER))
        if reply.stop_reason in LIMITS:
            self.warn(f"The answer was cut off at {LIMITS[reply.stop_reason]}.")
        elif reply.stop_reason not in WHOLE:
            self.warn(
                f"The model ended its answer for a reason that is not known: {reply.stop_reason[:100]!r}."
            )

    async def _append(
        self, role: Role, blocks: Sequence[Block], *, effect_ahead: bool = False, ends_step: bool = False
    ) -> None:
        clean = without_secrets(blocks, self._redactor)
        await self._store.runs.append(
            self._lease,
            [NewMessage(new_id(MESSAGE), role, clean)] if clean else [],
            now_ms(),
            effect_ahead=effect_ahead,
            spent=self._unstored_spending(),
            ends_step=ends_step,
        )
        self.meter.stored()

    def _unstored_spending(self) -> Spending | None:
        return None if self.meter.uncounted == NOTHING else self.meter.uncounted


class ChildRecorder(AgentMeter):
    """Implements ``Recorder`` for a subagent: its calls are shown and counted, its text is not told."""

    awaited = True
    """Its parent waits."""

    def __init__(self, parent: RunRecorder, label: str) -> None:
        super().__init__(parent.meter)
        self.budget = None if parent.budget is None else parent.budget.shared_with(self)
        self._parent = parent
        self._label = label

    delta = AgentMeter.heard

    async def retrying(self) -> None:
        """Nobody has seen the reply that begins anew."""

    async def replied(self, reply: Reply, *, final: bool, effect_ahead: bool = False) -> None:
        """Count the usage, show the calls. The parent's step says already that there may be effects."""
        await self.unused(reply)
        self._parent.show_calls(reply, subagent=self._label)

    async def called(self, call: Block, result: ToolResult, *, speaks: bool) -> None:
        """Show how a tool ended."""
        await self._parent.called(call, result, speaks=speaks, subagent=self._label)

    async def answered(self, results: Sequence[Block]) -> None:
        """Nothing of a child is stored: its parent's step is."""

    def child(self, label: str) -> ChildRecorder:
        """Return the recorder of a subagent of this one."""
        return ChildRecorder(self._parent, label)


def _previewed(data: dict[str, Any]) -> dict[str, Any]:
    preview = data.get("preview", "")
    return data if len(preview) <= PREVIEW else {**data, "preview": f"{preview[:PREVIEW]}…"}

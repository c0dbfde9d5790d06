"""All tools of one run under one roof: which toolset a name belongs to, and calls that never raise."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Final, Literal, Protocol

from anyio import to_thread

from host.agent.endings import Halted
from host.ports import SeenFiles, ToolResult, Toolset, ToolSpec
from host.tools.pictures_and_documents import fit
from host.tools.without_sandbox import asked as question_asked
from shared.approval_values import (
    ELICITATION,
    LARGEST_INPUT,
    MOST_OF_A_STEP,
    MOST_OPEN,
    UNKEPT_MS,
    Approval,
    NewApproval,
)
from shared.clock import DAY_MS
from shared.ids import APPROVAL, new_id
from shared.jsons import dump_bytes
from shared.redact import Redactor
from shared.untrusted import wrapped
from shared.values import Block

logger = logging.getLogger("picoclaw.tools")


Verdict = Literal["allow", "ask", "deny"]

REFUSED: Final = "This call was not made: the operator's permissions don't allow it."
NOT_STORED: Final = (
    "This call was not made: a person would have to allow it, which needs a stored conversation."
)
CHANGED: Final = (
    "This call was not made: changed. The file is not what the person saw; look at it and call again."
)
TOO_MANY: Final = "This call was not made: too many calls wait for people already."
TOO_LARGE: Final = "This call was not made: its input is too large to be shown to a person; make it smaller."


class Judge(Protocol):
    """What says which calls run, wait for a person, or are refused."""

    def judge(self, tool: str, arguments: Mapping[str, Any]) -> Verdict:
        """Return what becomes of a call."""

    def removes(self, tool: str) -> bool:
        """Return whether no call of the tool can run, so that it need not be offered."""


UNKNOWN: Final = ToolSpec("", "", {}, read_only=True)

CallTool = Callable[[Toolset, str, Mapping[str, Any]], Awaitable[ToolResult]]


async def plain_call(toolset: Toolset, name: str, arguments: Mapping[str, Any]) -> ToolResult:
    """Call a tool, and nothing else."""
    return await toolset.call(name, arguments)


async def _none() -> int:
    return 0


class Toolbox:
    """The tools a run offers. The order is fixed: the prompt cache depends on it."""

    def __init__(
        self,
        toolsets: Iterable[Toolset],
        redactor: Redactor,
        call: CallTool = plain_call,
        gate: Judge | None = None,
        *,
        unkept: bool = False,
    ) -> None:
        self.redactor = redactor
        self._call = call
        self._gate = gate
        self._unkept = unkept
        """Whether the conversation goes with its answer, so that no person is asked."""
        self.open_requests: Callable[[], Awaitable[int]] = _none
        """Counts the calls that wait already."""
        self._asked: list[str] = []
        """Those of this run, with its subagents'."""
        self._owner: dict[str, Toolset] = {}
        self._specs: dict[str, ToolSpec] = {}
        self.withheld: set[str] = set()
        """Names of tools that can be called, but are not shown to the model; its subsets have the same."""
        self.renew: Callable[[], Awaitable[None]] | None = None
        """Takes in what came or changed since the last step, where that can be."""
        self.answers: list[tuple[str, str]] = []
        """Questions of servers in the middle of the call that is made, and what people answered to them."""
        self._answering = asyncio.Lock()
        for toolset in toolsets:
            self.add(toolset)

    def add(self, toolset: Toolset) -> None:
        """Offer more tools. The first one keeps its name: another server can't take over a built-in tool."""
        for spec in toolset.specs:
            removed = self._gate is not None and self._gate.removes(spec.name)
            if spec.name not in self._specs and not removed:
                self._specs[spec.name] = spec
                self._owner[spec.name] = toolset

    def put(self, toolset: Toolset) -> None:
        """Offer the tools that the toolset has now, and no others of it."""
        for name in [name for name, owner in self._owner.items() if owner is toolset]:
            del self._owner[name], self._specs[name]
        self.add(toolset)

    def of(self, names: Iterable[str]) -> list[ToolSpec]:
        """Return those of the tools that are there."""
        return [self._specs[name] for name in names if name in self._specs]

    def subset(self, names: Collection[str]) -> Toolbox:
        """Return those of these tools, in the same order."""
        part = Toolbox((), self.redactor, self._call, self._gate, unkept=self._unkept)
        part._specs = {name: spec for name, spec in self._specs.items() if name in names}
        part.withheld, part._asked, part.open_requests = self.withheld, self._asked, self.open_requests
        part.answers, part._answering = self.answers, self._answering
        part._owner = {name: self._owner[name] for name in part._specs}
        return part

    def delegable(self) -> list[str]:
        """Return the names of the tools that a subagent may have."""
        return [spec.name for spec in self._specs.values() if spec.delegable]

    def definitions(self) -> list[Mapping[str, Any]]:
        """Return the tools as the Messages API wants them."""
        return [spec.definition for spec in self._specs.values() if spec.name not in self.withheld]

    def spec(self, name: str) -> ToolSpec:
        """Return a tool; of an unknown name one whose calls have no effect, for they only give an error."""
        return self._specs.get(name, UNKNOWN)

    def title(self, name: str) -> str:
        """Return a tool's name for people."""
        return self.spec(name).title or name

    def read_only(self, name: str) -> bool:
        """Return whether calls of this tool have no effect."""
        return self.spec(name).read_only

    def refusal(self, name: str, arguments: Mapping[str, Any], *, asked: bool) -> str | None:
        """Return why a call is not made, None if it is; ``asked``: a person has allowed it."""
        if self._gate is None or name not in self._specs:
            return None
        verdict = self._gate.judge(name, self.redactor.value(dict(arguments)))
        return REFUSED if verdict == "deny" or (verdict == "ask" and not asked) else None

    async def held(self, calls: Sequence[Block]) -> tuple[list[NewApproval], dict[str, ToolResult]]:
        """Return the calls that a person has to be asked about, and results of those that are not made."""
        return await self._admitted(
            {call["id"]: request for call in calls if (request := self._request(call)) is not None}
        )

    async def parked(self, calls: Sequence[Block], results: dict[str, ToolResult]) -> list[NewApproval]:
        """Return what servers ask people before they answer, in place of the calls' results."""
        asked, refused = await self._admitted(
            {
                call["id"]: NewApproval(
                    new_id(APPROVAL),
                    "question",
                    call["name"],
                    self.redactor.value(
                        {**question, "call": call["input"], "answers": call.get("answers", [])}
                    ),
                    call["id"],
                    ELICITATION,
                )
                for call in calls
                if call["id"] in results and (question := results[call["id"]].question) is not None
            }
        )
        results.update(refused)
        for request in asked:
            del results[request.call_id]
        return asked

    async def _admitted(
        self, found: dict[str, NewApproval | str]
    ) -> tuple[list[NewApproval], dict[str, ToolResult]]:
        wanted = [request for request in found.values() if isinstance(request, NewApproval)]
        room = min(MOST_OPEN - await self.open_requests(), MOST_OF_A_STEP) if wanted else 0
        asked: list[NewApproval] = []
        for request in wanted:
            why = self._why_not(request, room - len(self._asked))
            if why is None:
                self._asked.append(request.id)
                base = await self._base(request.tool, request.input)
                asked.append(dataclasses.replace(request, base_sha256=base))
            else:
                found[request.call_id] = why
        refused = {
            call_id: ToolResult(why, is_error=True, trusted=True)
            for call_id, why in found.items()
            if isinstance(why, str)
        }
        return asked, refused

    async def _base(self, name: str, arguments: Mapping[str, Any]) -> str | None:
        toolset = self._owner.get(name)
        return await toolset.base_sha256(name, arguments) if isinstance(toolset, SeenFiles) else None

    async def changed(self, call: Block) -> ToolResult | None:
        """Return the result of an allowed call whose file is not what the person saw any more."""
        seen = call["base_sha256"]
        if seen is None or call["name"] not in self._owner:
            return None
        if await self._base(call["name"], call["input"]) == seen:
            return None
        return ToolResult(CHANGED, is_error=True, trusted=True)

    def _request(self, call: Block) -> NewApproval | str | None:
        """Return what is to be asked about a call, why it is refused, or None if it just runs."""
        name, arguments = call["name"], self.redactor.value(call["input"])
        if name not in self._specs:
            return None
        spec = self._specs[name]
        verdict = "allow" if self._gate is None else self._gate.judge(name, arguments)
        if verdict == "deny":
            return REFUSED
        if verdict == "ask" and self._unkept:
            return NOT_STORED
        if spec.asks == "client_tool" and verdict == "allow":
            return self._for_program(spec, arguments, call["id"])
        if spec.asks == "question":
            return question_asked(arguments, call["id"])
        if verdict == "allow":
            return None
        return NewApproval(new_id(APPROVAL), "approval", name, arguments, call["id"])

    def handed_on(self, allowed: Approval) -> NewApproval | None:
        """Return what the calling program is asked for a call of its own that a person has allowed."""
        spec = self._specs.get(allowed.tool)
        if spec is None or spec.asks != "client_tool":
            return None
        return self._for_program(spec, allowed.input, allowed.call_id)

    def _for_program(self, spec: ToolSpec, arguments: Mapping[str, Any], call_id: str) -> NewApproval:
        life_ms = UNKEPT_MS if self._unkept else DAY_MS
        return NewApproval(new_id(APPROVAL), "client_tool", spec.title, arguments, call_id, life_ms=life_ms)

    def _why_not(self, request: NewApproval, room: int) -> str | None:
        if room <= 0:
            return TOO_MANY
        return TOO_LARGE if len(dump_bytes(request.input)) > LARGEST_INPUT else None

    async def call_again(self, call: Block) -> ToolResult:
        """Make a stored call; what people have answered to its server is at hand meanwhile."""
        if not call["answers"]:
            return await self.changed(call) or await self.call(call["name"], call["input"])
        async with self._answering:
            self.answers[:] = call["answers"]
            result = await self.call(call["name"], call["input"])
            self.answers.clear()
            return result

    async def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        """Run a tool; whatever goes wrong is a result that says so, without internals."""
        toolset = self._owner.get(name)
        if toolset is None:
            return ToolResult(f"There is no tool named {name}.", is_error=True)
        try:
            result = await self._call(toolset, name, arguments)
            if result.images:
                result = await to_thread.run_sync(fit, result)
            return dataclasses.replace(result, text=self.redactor.text(result.text))
        except Halted:
            raise
        except Exception as error:
            logger.exception("Tool execution failed", extra={"tool": name, "error": type(error).__name__})
            return ToolResult(
                f"The tool {name} failed inside the host; nothing more is known.", is_error=True
            )


def result_block(call_id: str, result: ToolResult, note: str | None = None) -> Block:
    """Return the ``tool_result`` block for the model: a text between marks that it can't contain.

    ``note`` is what the host says of it.
    """
    text = result.text if result.trusted else wrapped(result.text, call_id)
    content: list[Block] = [{"type": "text", "text": text}]
    for image in result.images:
        source = {"type": "base64", "media_type": image.media_type, "data": image.data}
        content.append({"type": "image", "source": source})
    if note:
        content.append({"type": "text", "text": note})
    return {"type": "tool_result", "tool_use_id": call_id, "content": content, "is_error": result.is_error}


def without_secrets(blocks: Sequence[Block], redactor: Redactor) -> list[Block]:
    """Return blocks as they may be stored. Thinking stays as it is: its signature covers every character."""
    return [block if "thinking" in block["type"] else redactor.value(block) for block in blocks]


def batches(calls: Sequence[Block], toolbox: Toolbox) -> list[list[Block]]:
    """Split calls into groups that run one after the other; the calls of a group run side by side."""
    groups: list[list[Block]] = []
    for call in calls:
        alone = not toolbox.spec(call["name"]).parallel
        if alone or not groups or not toolbox.spec(groups[-1][-1]["name"]).parallel:
            groups.append([call])
        else:
            groups[-1].append(call)
    return groups

"""All tools of one run under one roof: which toolset a name belongs to, and calls that never raise."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from anyio import to_thread
from anyio.lowlevel import checkpoint

from host.ports import ToolResult, Toolset, ToolSpec
from host.tools.pictures import fit
from shared.redact import Redactor
from shared.untrusted import wrapped
from shared.values import Block

logger = logging.getLogger("picoclaw.tools")


CallTool = Callable[[Toolset, str, Mapping[str, Any]], Awaitable[ToolResult]]


async def plain_call(toolset: Toolset, name: str, arguments: Mapping[str, Any]) -> ToolResult:
    """Call a tool, and nothing else."""
    return await toolset.call(name, arguments)


class Toolbox:
    """The tools a run offers. The order is fixed: the prompt cache depends on it."""

    def __init__(self, toolsets: Iterable[Toolset], redactor: Redactor, call: CallTool = plain_call) -> None:
        self._redactor = redactor
        self._call = call
        self._owner: dict[str, Toolset] = {}
        self._specs: dict[str, ToolSpec] = {}
        self.withheld: set[str] = set()
        """Names of tools that can be called, but are not shown to the model; its subsets have the same."""
        self.renew: Callable[[], Awaitable[None]] = checkpoint
        """Takes in what came or changed since the last step."""
        for toolset in toolsets:
            self.add(toolset)

    def add(self, toolset: Toolset) -> None:
        """Offer more tools. The first one keeps its name: another server can't take over a built-in tool."""
        for spec in toolset.specs:
            if spec.name not in self._specs:
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
        part = Toolbox((), self._redactor, self._call)
        part._specs = {name: spec for name, spec in self._specs.items() if name in names}
        part.withheld = self.withheld
        part._owner = {name: self._owner[name] for name in part._specs}
        return part

    def delegable(self) -> list[str]:
        """Return the names of the tools that a subagent may have."""
        return [spec.name for spec in self._specs.values() if spec.delegable]

    def definitions(self) -> list[dict[str, Any]]:
        """Return the tools as the Messages API wants them."""
        return [definition(spec) for spec in self._specs.values() if spec.name not in self.withheld]

    def title(self, name: str) -> str:
        """Return a tool's name for people."""
        spec = self._specs.get(name)
        return name if spec is None else spec.title or name

    def parallel(self, name: str) -> bool:
        """Return whether calls of this tool may run beside others (an unknown one only gives an error)."""
        spec = self._specs.get(name)
        return spec is None or spec.parallel

    def read_only(self, name: str) -> bool:
        """Return whether calls of this tool have no effect."""
        spec = self._specs.get(name)
        return spec is None or spec.read_only

    def speaks(self, name: str) -> bool:
        """Return whether the conversation may have said something after a call of this tool."""
        spec = self._specs.get(name)
        return spec is not None and spec.speaks

    async def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        """Run a tool; whatever goes wrong is a result that says so, without internals."""
        toolset = self._owner.get(name)
        if toolset is None:
            return ToolResult(f"There is no tool named {name}.", is_error=True)
        try:
            result = await self._call(toolset, name, arguments)
            if result.images:
                result = await to_thread.run_sync(fit, result)
            return dataclasses.replace(result, text=self._redactor.text(result.text))
        except Exception as error:
            logger.exception("Tool execution failed", extra={"tool": name, "error": type(error).__name__})
            return ToolResult(
                f"The tool {name} failed inside the host; nothing more is known.", is_error=True
            )


def definition(spec: ToolSpec) -> dict[str, Any]:
    """Return a tool as the Messages API wants it."""
    if spec.definition is not None:
        return dict(spec.definition)
    return {"name": spec.name, "description": spec.description, "input_schema": spec.input_schema}


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


def batches(calls: Sequence[Block], toolbox: Toolbox) -> list[list[Block]]:
    """Split calls into groups that run one after the other; the calls of a group run side by side."""
    groups: list[list[Block]] = []
    for call in calls:
        alone = not toolbox.parallel(call["name"])
        if alone or not groups or not toolbox.parallel(groups[-1][-1]["name"]):
            groups.append([call])
        else:
            groups[-1].append(call)
    return groups

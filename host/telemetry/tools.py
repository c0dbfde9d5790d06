"""One span a tool call: ``execute_tool`` of the GenAI conventions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from opentelemetry.semconv._incubating.attributes import gen_ai_attributes as gen_ai
from opentelemetry.trace import SpanKind, Tracer

from host.telemetry.spans import fail, span
from host.tools.base import ToolResult, Toolset, ToolSpec
from shared.jsons import dumps
from shared.redact import Redactor


class TracedToolset:
    """Implements ``Toolset`` around another one. ``content``: what is said is told too, redacted."""

    def __init__(self, toolset: Toolset, tracer: Tracer, content: Redactor | None) -> None:
        self._toolset = toolset
        self._tracer = tracer
        self._content = content

    def specs(self) -> Sequence[ToolSpec]:
        """See ``Toolset.specs``."""
        return self._toolset.specs()

    async def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        """See ``Toolset.call``."""
        attributes = {
            gen_ai.GEN_AI_OPERATION_NAME: "execute_tool",
            gen_ai.GEN_AI_TOOL_NAME: name,
            gen_ai.GEN_AI_TOOL_TYPE: "function",
        }
        with span(self._tracer, f"execute_tool {name}", SpanKind.INTERNAL, attributes) as called:
            if self._content is not None:
                asked = dumps(self._content.value(dict(arguments)))
                called.set_attribute(gen_ai.GEN_AI_TOOL_CALL_ARGUMENTS, asked)
            result = await self._toolset.call(name, arguments)
            if self._content is not None:
                called.set_attribute(gen_ai.GEN_AI_TOOL_CALL_RESULT, self._content.text(result.text))
            if result.is_error:
                fail(called, "tool_error")
            return result

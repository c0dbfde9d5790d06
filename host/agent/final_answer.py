"""The answer of a promised shape: a last call carries it, and it counts once it is what the schema says."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from host.agent.endings import OutputInvalid
from host.agent.text import strip_internal
from host.ports import Reply, ToolResult, ToolSpec
from shared import jsons
from shared.usage_values import Usage

NAME: Final = "final_answer"
MOST_TRIES: Final = 2
"""The first answer, and one that is mended."""
WRAPPED: Final = "value"
"""The argument that holds an answer which can't be a tool's input itself."""
WANTED: Final = (
    f"Give the answer to this message by calling {NAME}, once and when everything else is done. Its input is "
    "read by a program; text is not."
)
_AGAIN: Final = f"This is not the answer that was asked for. {{}}\nCall {NAME} again, with all of the answer."
_TEXT: Final = f"It is text, and no call of {NAME}."
_CUT: Final = "The call's input was not whole."
_FIELD: Final = re.compile(r"[a-zA-Z0-9_.-]{1,64}")
_NO_TOOL: Final = frozenset({"anyOf", "oneOf", "allOf"})
"""What the Messages API doesn't take at the top of a tool's schema."""

Schema = Mapping[str, Any] | bool


class FinalAnswer:
    """Implements ``host.ports.Toolset`` for one run. ``judge`` returns what is wrong with a value, or None.

    ``redact`` takes secrets out of it before. ``value`` is the answer once it is ``given``, in one of
    ``tries``; ``marked``: it had the session's end ``marker``.
    """

    def __init__(
        self,
        schema: Schema,
        judge: Callable[[Any], Awaitable[str | None]],
        redact: Callable[[Any], Any],
        marker: str,
    ) -> None:
        self.value: Any = None
        self.given = self.marked = False
        self.tries = 0
        self._judge = judge
        self._redact = redact
        self._marker = marker
        self._is_wrapped = not _is_input(schema)
        self._fault = ""
        self.specs = (
            ToolSpec(
                NAME,
                "Gives the answer, and ends the work. Call it once, when everything else is done.",
                _wrapped(schema) if self._is_wrapped else dict(schema),  # type: ignore[arg-type]
                parallel=False,
                read_only=True,
                delegable=False,
            ),
        )

    async def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        """Take an answer."""
        await self._take(arguments.get(WRAPPED) if self._is_wrapped else arguments)
        return ToolResult("Taken." if self.given else self.again, is_error=not self.given)

    async def read(self, text: str) -> None:
        """Take the answer of a model that wrote it as text."""
        plain = self._shown(text).strip().removeprefix("```json").removeprefix("```").removesuffix("```")
        try:
            await self._take(jsons.loads(plain))
        except jsons.JSONDecodeError:
            self._fail(_TEXT)

    def cut(self, reply: Reply) -> None:
        """Count the call of a reply that can't be made."""
        if any(call["name"] == NAME and call["id"] in reply.malformed for call in reply.tool_uses):
            self._fail(_CUT)

    @property
    def again(self) -> str:
        """What the model is told of an answer that doesn't count."""
        return _AGAIN.format(self._fault)

    def is_over(self) -> bool:
        """Return whether the answer is given; raises OutputInvalid when no try is left."""
        if not self.given and self.tries >= MOST_TRIES:
            raise OutputInvalid(f"The model's answer is not what was asked for. {self._fault}")
        return self.given

    def reply(self, reply: Reply) -> Reply:
        """Return what the run says last, in place of the reply that gave the answer."""
        # What a reply with calls used is counted with the step.
        usage = Usage() if reply.tool_uses else reply.usage
        return replace(reply, blocks=[{"type": "text", "text": jsons.dumps(self.value)}], usage=usage)

    async def _take(self, value: Any) -> None:
        if self.given or self.tries >= MOST_TRIES:
            return
        shown = self._redact(self._shown(value))
        fault = await self._judge(shown)
        if fault is None:
            self.tries += 1
            self.value, self.given = shown, True
        else:
            self._fail(fault)

    def _fail(self, fault: str) -> None:
        self.tries += 1
        self._fault = fault

    def _shown(self, value: Any) -> Any:
        """Return a value without what people don't see."""
        if isinstance(value, str):
            self.marked |= bool(self._marker) and self._marker in value
            text = strip_internal(value)
            return text.replace(self._marker, "") if self._marker else text
        if isinstance(value, Mapping):
            return {self._shown(key): self._shown(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self._shown(item) for item in value]
        return value


def _is_input(schema: Schema) -> bool:
    """Return whether a model's API takes it as it is for the input of a tool."""
    if isinstance(schema, bool) or schema.get("type") != "object" or schema.keys() & _NO_TOOL:
        return False
    return all(map(_FIELD.fullmatch, schema.get("properties", {})))


def _wrapped(schema: Schema) -> dict[str, Any]:
    """Return the schema as an argument's; what it refers to within itself stays within it."""
    inner = schema if isinstance(schema, bool) else {"$id": "urn:picoclaw:answer", **schema}
    return {
        "type": "object",
        "properties": {WRAPPED: inner},
        "required": [WRAPPED],
        "additionalProperties": False,
    }

"""Tools of the calling program, at every door: how it declares them, and gives the results of their calls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, Final

from pydantic import Field, StringConstraints

from host.http.bodies import Body, Text
from host.mcp_clients.json_rpc import cut
from host.schemas.judge import SchemaJudge
from host.tools.client_tools import ClientTool
from shared import jsons
from shared.errors import InvalidInput

MOST_TOOLS: Final = 64
LARGEST_TOOLS: Final = 256 * 1024
"""Bytes of all definitions, as JSON."""
NO_INPUT: Final[dict[str, Any]] = {"type": "object", "properties": {}}

ToolName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


class ToolDefinition(Body):
    """A tool that the caller carries out itself."""

    name: ToolName
    description: Text = ""
    input_schema: Annotated[dict[str, Any], Field(json_schema_extra={"format": "json-schema"})]

    def tool(self) -> ClientTool:
        """Return the tool."""
        return ClientTool(self.name, self.description, self.input_schema)


async def checked(
    tools: Sequence[ClientTool], judge: SchemaJudge, schema_at: str = "input_schema"
) -> tuple[ClientTool, ...]:
    """Return the tools as the model can be told of them; raises InvalidInput naming the field.

    ``schema_at``: where a definition has its schema.
    """
    if len(tools) > MOST_TOOLS:
        raise InvalidInput(f"tools: must be at most {MOST_TOOLS}")
    twice = [name for name, times in Counter(tool.name for tool in tools).items() if times > 1]
    if twice:
        raise InvalidInput(f"tools: two have the name {twice[0]}")
    made = [ClientTool(tool.name, tool.description, {**NO_INPUT, **tool.input_schema}) for tool in tools]
    for number, tool in enumerate(made):
        fault = (await judge.schema(tool.input_schema, input_only=True)).schema_fault
        if fault is None and tool.input_schema["type"] != "object":
            fault = 'type: must be "object"'
        if fault is not None:
            raise InvalidInput(f"tools.{number}.{schema_at}: {fault}")
    if sum(len(jsons.dump_bytes([tool.description, tool.input_schema])) for tool in made) > LARGEST_TOOLS:
        raise InvalidInput(f"tools: must have at most {LARGEST_TOOLS} bytes together")
    return tuple(made)


def result_text(output: Any) -> str:
    """Return what a program says of a call as a text for the model, cut to a length; raises InvalidInput."""
    if not jsons.fits(output):
        raise InvalidInput("output: is nested too deep, or has a number too large")
    return cut(output if isinstance(output, str) else jsons.dumps(output))

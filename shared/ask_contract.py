"""The tools by which other agents ask this one; the host itself serves them, tool servers pass them on.

They are not among the tools of the host's own runs: an agent could talk to itself until its budget ends.
"""

from collections.abc import Mapping
from functools import cache
from typing import Final

from pydantic import Field

from shared.tool_contract import Arguments, Id, Schema, ToolDeclaration

TASKS: Final = "io.modelcontextprotocol/tasks"
"""The extension of the Model Context Protocol (SEP-2663) in which a long answer is a task."""
TASK_METHODS: Final = ("tasks/get", "tasks/update", "tasks/cancel")
DEPTH: Final = "picoclaw/depth"
"""In ``_meta`` of a call: how many agents have asked each other up to it."""
ASK_TOOLS: Final = ("ask", "get_run", "cancel_run")


class Ask(Arguments):
    """A message to the agent."""

    message: str = Field(
        min_length=1, max_length=2**20, description="What you want, with everything the agent must know."
    )
    conversation_id: Id = Field("", description="A conversation to go on with. Default: a new one.")
    output_schema: Schema | None = Field(None, description="A JSON Schema that the answer must satisfy.")
    max_execution_ms: int = Field(0, ge=0, le=2**53, description="Stop after so many milliseconds.")


class RunId(Arguments):
    """Names a run."""

    run_id: str = Field(min_length=1, max_length=200, description="The run_id that ask returned.")


_TEXT: Final[Schema] = {"type": "string"}
_VIEW: Final[Schema] = {
    "type": "object",
    "properties": dict.fromkeys(("status", "run_id", "conversation_id", "result", "error"), _TEXT),
    "required": ["status", "run_id", "conversation_id"],
}


@cache
def ask_declarations() -> Mapping[str, ToolDeclaration]:
    """Return the tools by name."""
    tools = (
        ToolDeclaration(
            "ask",
            "Ask the agent",
            "Ask the PicoClaw agent, which has tools, files and memory of its own, and return its answer. If "
            "it takes longer than 20 seconds, the status is running: get_run has the answer later.",
            Ask,
            output_schema=_VIEW,
            destructive=True,
        ),
        ToolDeclaration(
            "get_run",
            "Show a run",
            "Show how a run that ask began stands, with its answer once it has ended.",
            RunId,
            output_schema=_VIEW,
            read_only=True,
        ),
        ToolDeclaration(
            "cancel_run",
            "Stop a run",
            "Stop a run that ask began.",
            RunId,
            output_schema=_VIEW,
            idempotent=True,
        ),
    )
    return {tool.name: tool for tool in tools}


@cache
def ask_listing() -> tuple[Schema, ...]:
    """Return the tools as ``tools/list`` has them."""
    return tuple(map(listed, ask_declarations().values()))


def listed(tool: ToolDeclaration) -> Schema:
    """Return any tool as ``tools/list`` has it."""
    hints = {
        "readOnlyHint": tool.read_only,
        "destructiveHint": tool.destructive,
        "idempotentHint": tool.idempotent or tool.read_only,
        "openWorldHint": False,
    }
    return {
        "name": tool.name,
        "title": tool.title,
        "description": tool.description,
        "inputSchema": tool.input_schema,
        "outputSchema": tool.output_schema,
        "annotations": hints,
    }

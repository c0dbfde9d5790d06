"""What a tool is called with: the schemas of files and commands, and the check by a schema."""

from collections.abc import Mapping
from typing import Any, Final

from pydantic import ValidationError

from host.ports import ToolResult, ToolSpec
from host.tools.pictures_and_documents import PAGES

_TYPES: Final[dict[str, type]] = {"string": str, "integer": int, "boolean": bool}


class BadArguments(Exception):
    """A sentence that names the argument and what would be right."""


def check(arguments: Mapping[str, Any], schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments, without those that are null; 5000.0 counts as 5000. Raises ``BadArguments``.

    Knows ``properties`` with ``type`` string, integer or boolean, ``minimum`` and ``enum``; ``required``; and
    refuses anything the schema does not name.
    """
    if not isinstance(arguments, Mapping):
        raise BadArguments("the arguments must be an object")
    given = {name: value for name, value in arguments.items() if value is not None}
    for name in schema["required"]:
        if name not in given:
            raise BadArguments(f"{name} is missing")
    return {name: _checked(name, value, schema["properties"].get(name)) for name, value in given.items()}


def _checked(name: str, value: Any, rule: Mapping[str, Any] | None) -> Any:
    if rule is None:
        raise BadArguments(f"there is no argument named {name[:100]}")
    kind = _TYPES[rule["type"]]
    if kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise BadArguments(f"{name} must be of type {rule['type']}")
    if "minimum" in rule and value < rule["minimum"]:
        raise BadArguments(f"{name} must be at least {rule['minimum']}")
    if "enum" in rule and value not in rule["enum"]:
        raise BadArguments(f"{name} must be one of {', '.join(rule['enum'])}")
    return value


def refused(error: ValidationError) -> ToolResult:
    """Return the result of a call whose arguments are wrong: it names the first that is, never its value."""
    fault = error.errors(include_url=False, include_input=False)[0]
    return ToolResult(f"{'.'.join(map(str, fault['loc']))}: {fault['msg'].lower()}", is_error=True)


def _spec(
    name: str, description: str, properties: dict[str, Any], required: list[str], *, read_only: bool = False
) -> ToolSpec:
    schema = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return ToolSpec(name, description, schema, read_only=read_only)


_PATH: Final = {
    "type": "string",
    "description": "Path; relative ones start at the workspace, ~ is $HOME of commands",
}
_COUNT: Final = {"type": "integer", "minimum": 1}
FILE_SPECS: Final = (
    _spec(
        "read_file",
        "Read a text file. The first line tells size, the lines shown and, if more follow, how to go on. "
        "Images are returned as images, a PDF as the text of its pages; other binary files are recognised, "
        "not shown.",
        {
            "path": _PATH,
            "offset": {**_COUNT, "description": "First line to read, counted from 1"},
            "limit": {**_COUNT, "description": "Number of lines (default 2000)"},
            "from_byte": {
                **_COUNT,
                "description": "Byte to begin at within the line offset, as a header says",
            },
            "pages": {
                "type": "string",
                "pattern": PAGES,
                "description": "Of a PDF: 3, 2-5 or 4-; as many as fit are shown",
            },
        },
        ["path"],
        read_only=True,
    ),
    _spec(
        "write_file",
        "Write a whole file; missing directories are made. An existing file needs overwrite=true.",
        {"path": _PATH, "content": {"type": "string"}, "overwrite": {"type": "boolean", "default": False}},
        ["path", "content"],
    ),
    _spec(
        "edit_file",
        "Replace old_text, which must match exactly and once (or pass replace_all=true), with new_text. "
        "The file keeps its encoding and its line ends.",
        {
            "path": _PATH,
            "old_text": {"type": "string"},
            "new_text": {"type": "string"},
            "replace_all": {"type": "boolean", "default": False},
        },
        ["path", "old_text", "new_text"],
    ),
    _spec(
        "append_file",
        "Add text to the end of a file; it is created if missing.",
        {"path": _PATH, "content": {"type": "string"}},
        ["path", "content"],
    ),
    _spec(
        "list_dir",
        "List a directory: names, kinds (a trailing / for directories) and sizes in bytes.",
        {
            "path": {**_PATH, "default": "."},
            "depth": {**_COUNT, "description": "Levels to descend (default 1, at most 8)"},
            "limit": {**_COUNT, "description": "Entries to list (default 500, at most 5000)"},
        },
        [],
        read_only=True,
    ),
)
EXEC_SPEC: Final = _spec(
    "exec",
    "Run a shell command line in the workspace, in a sandbox. Returns stdout and stderr in order and "
    "the exit code. What it leaves running is ended, unless background=true: then it keeps running and "
    "gets a number; action list, read and kill manage those.",
    {
        "command": {"type": "string", "description": "Shell command line (bash)"},
        "cwd": {"type": "string", "description": "Working directory, default the workspace"},
        "timeout_ms": {**_COUNT, "description": "Time limit in milliseconds"},
        "stdin": {"type": "string", "description": "Standard input; empty if left out"},
        "background": {"type": "boolean", "default": False},
        "action": {
            "type": "string",
            "enum": ["run", "list", "read", "kill"],
            "default": "run",
            "description": "For background commands; read and kill need job",
        },
        "job": {**_COUNT, "description": "Number of a background command"},
    },
    [],
)

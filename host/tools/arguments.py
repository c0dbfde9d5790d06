"""What a tool was called with: checked against its schema, or refused by a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pydantic import ValidationError

from host.ports import ToolResult

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

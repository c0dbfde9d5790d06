"""What a tool is to the agent loop: a spec the model sees, and a call that returns a result, never raises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from pydantic import ValidationError

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


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A tool as the model sees it.

    ``input_schema`` is a JSON Schema object with ``additionalProperties: false``.
    ``parallel``: calls of one reply may run side by side with others. ``read_only``: a call has no effect,
    so that a run that was cut off during one may be repeated. ``definition``: the model's API runs the tool
    itself, and this is how it wants to be told of it.
    """

    name: str
    description: str
    input_schema: Mapping[str, Any]
    parallel: bool = True
    read_only: bool = False
    delegable: bool = True
    definition: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Image:
    """An image for the model: base64 ``data`` of an ``image/png|jpeg|gif|webp`` ``media_type``."""

    data: str
    media_type: str


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a call gave: text for the model (a sentence if ``is_error``), and images if any.

    ``trusted``: the operator's own words, which the model needs no warning of.
    """

    text: str
    is_error: bool = False
    images: tuple[Image, ...] = ()
    trusted: bool = False


class Toolset(Protocol):
    """A group of tools bound to one conversation at its birth; no argument changes whose it is."""

    def specs(self) -> Sequence[ToolSpec]:
        """Return the tools, in a stable order (the prompt cache depends on it)."""
        ...

    async def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        """Run one tool. Faults come back as ``ToolResult(is_error=True)``; only cancellation raises."""
        ...


def refused(error: ValidationError) -> ToolResult:
    """Return the result of a call whose arguments are wrong: it names the first that is, never its value."""
    fault = error.errors(include_url=False, include_input=False)[0]
    return ToolResult(f"{'.'.join(map(str, fault['loc']))}: {fault['msg'].lower()}", is_error=True)

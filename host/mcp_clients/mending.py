"""Tools as other servers list them, made into ones that the Messages API takes, or left out one by one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final

from host.mcp_clients import schemas
from shared import jsons, untrusted
from shared.lines import one_line

NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")
"""What the Messages API takes as a tool's name."""
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9_-]+")
_UNSAFE_FIELD: Final = re.compile(r"[^A-Za-z0-9_.-]+")
DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
"""What the API takes schemas as; names of others could make it refuse one."""
INPUT: Final = "input"
"""The one field of a tool whose arguments the API would not take at the top."""


class Unmendable(Exception):
    """The tool can't be offered; the text says why."""


@dataclass(frozen=True, slots=True)
class ListedTool:
    """One tool. ``name``: the server's; ``schema``: what the model sees, in words of the server's.

    ``output``: the schema that its structured results promise to follow, None without one.
    """

    name: str
    description: str
    schema: Mapping[str, Any]
    reads: bool = False
    output: Any = None
    wrapped: bool = False
    fields: Mapping[str, str] = field(default_factory=dict)
    """Names of arguments as the server knows them, by those that the model sees."""

    def arguments(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return a call's arguments as the server wants them."""
        inner = given.get(INPUT)
        if self.wrapped and isinstance(inner, Mapping):
            return dict(inner)
        return {self.fields.get(name, name): value for name, value in given.items()}


def mended(raw: Any) -> ListedTool:
    """Return a tool of a server's list; raises Unmendable."""
    if not isinstance(raw, Mapping) or not isinstance(raw.get("name"), str) or not raw["name"]:
        raise Unmendable("it has no name")
    hints = raw.get("annotations")
    schema = _object(raw.get("inputSchema"))
    wrapped = any(key in schema for key in ("anyOf", "oneOf", "allOf"))
    fields: dict[str, str] = {}
    if wrapped:
        schema = _wrapped(schema)
    else:
        fields = _renamed(schema)
    if (fault := schemas.fault(schema)) is not None:
        raise Unmendable(fault)
    return ListedTool(
        raw["name"],
        _text(raw.get("description")) or _text(raw.get("title")) or "nothing",
        schema,
        isinstance(hints, Mapping) and hints.get("readOnlyHint") is True,
        raw.get("outputSchema") or None,
        wrapped,
        fields,
    )


def for_the_sdk(raw: Any) -> dict[str, Any] | None:
    """Return what the SDK needs of a tool, which refuses the whole list for one that is odd.

    No output schema: it would match the patterns of others on the event loop.
    """
    if not isinstance(raw, Mapping) or not isinstance(raw.get("name"), str):
        return None
    schema = raw.get("inputSchema")
    fields = schema.get("properties") if isinstance(schema, Mapping) else None
    schema = {"type": "object"}
    if isinstance(fields, Mapping) and all(isinstance(each, Mapping) for each in fields.values()):
        schema["properties"] = fields
    return {"name": raw["name"], "inputSchema": schema}


def safe_name(prefix: str, name: str) -> str:
    """Return a name the API takes, the same each time and no other tool's."""
    if NAME.fullmatch(prefix + name):
        return prefix + name
    mark = sha256(name.encode("utf-8", "replace")).hexdigest()[:8]
    return f"{prefix}{_UNSAFE.sub('_', name)[: 119 - len(prefix)]}_{mark}"


def shown(name: str) -> str:
    """Return a name of others for people and on a line."""
    return untrusted.defused(one_line(name[:160]))


def _text(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return jsons.dumps(value) if jsons.fits(value) else ""


def _object(schema: Any) -> dict[str, Any]:
    """Return an input schema that is an object's, where its meaning is plain; raises Unmendable."""
    if schema is None or schema is True:
        schema = {}
    if not isinstance(schema, Mapping):
        raise Unmendable("its input schema is not an object")
    kind = schema.get("type", "object")
    if kind != "object" and not (
        isinstance(kind, Sequence) and not isinstance(kind, str) and "object" in kind
    ):
        raise Unmendable("its input schema is not an object's")
    kept = (key for key in schema if key != "$schema" or schema[key] == DIALECT)
    made = {key: schema[key] for key in kept} | {"type": "object"}
    made["properties"] = {} if made.get("properties") is None else made["properties"]
    if not isinstance(made["properties"], Mapping):
        raise Unmendable("the fields of its input schema are not an object")
    if not _texts(made.get("required", [])):
        del made["required"]
    return made


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _wrapped(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema as that of one field: the API refuses alternatives at the top."""
    kept = {key: schema[key] for key in ("$schema", "$defs", "definitions") if key in schema}
    inner = _moved({key: value for key, value in schema.items() if key not in kept})
    return {"type": "object", "properties": {INPUT: inner}, "required": [INPUT], **_moved(kept)}


def _moved(schema: Any) -> Any:
    """Return a schema whose references to its own top find what now lies below it."""
    if isinstance(schema, list):
        return [_moved(item) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    made = {key: _moved(value) for key, value in schema.items()}
    to = made.get("$ref")
    if isinstance(to, str) and to.startswith("#") and not to.startswith(("#/$defs/", "#/definitions/")):
        made["$ref"] = f"#/properties/{INPUT}{to[1:]}"
    return made


def _renamed(schema: dict[str, Any]) -> dict[str, str]:
    """Give the fields at the top, in place, names that the API takes; return the old ones by the new ones."""
    new: dict[str, str] = {}
    for name in schema["properties"]:
        if not isinstance(name, str) or schemas.FIELD.fullmatch(name):
            continue
        mark = sha256(name.encode("utf-8", "replace")).hexdigest()[:8]
        plain = _UNSAFE_FIELD.sub("_", name).strip("_")[:50]
        safe = (
            plain
            if plain and plain not in schema["properties"] and plain not in new.values()
            else f"{plain}_{mark}"
        )
        new[name] = safe
    if new:
        schema["properties"] = {new.get(name, name): of for name, of in schema["properties"].items()}
        if "required" in schema:
            schema["required"] = [new.get(name, name) for name in schema["required"]]
    return {safe: name for name, safe in new.items()}

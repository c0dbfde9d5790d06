"""Values of JSON Schemas: what a model that understands nothing gives for an answer of a promised shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

_DEEPEST: Final = 12
"""Levels of a value: a schema may refer to itself."""
_PLAIN: Final[Mapping[str, Any]] = {"string": "", "boolean": False, "null": None}


def sample(schema: Any, root: Any = None, depth: int = 0) -> Any:
    """Return a small value that a plain schema takes; of one with many conditions it may be another."""
    if not isinstance(schema, Mapping) or depth > _DEEPEST:
        return None
    root = schema if root is None or "$id" in schema else root
    for name, first in (("const", False), ("default", False), ("enum", True), ("examples", True)):
        if name in schema:
            return schema[name][0] if first else schema[name]
    if "$ref" in schema:
        return sample(_referred(root, schema["$ref"]), root, depth + 1)
    for name in ("anyOf", "oneOf", "allOf"):
        if name in schema:
            return sample(schema[name][0], root, depth + 1)
    return _of_type(schema, root, depth)


def _of_type(schema: Mapping[str, Any], root: Any, depth: int) -> Any:
    kind = schema.get("type", "object" if "properties" in schema else "null")
    kind = kind[0] if isinstance(kind, list) else kind
    if kind == "object":
        known = schema.get("properties", {})
        return {name: sample(known.get(name), root, depth + 1) for name in schema.get("required", ())}
    if kind == "array":
        return [
            sample(schema.get("items"), root, depth + 1) for _ in range(min(schema.get("minItems", 0), 9))
        ]
    if kind in ("integer", "number"):
        return schema.get("minimum", 0)
    return "x" * min(schema.get("minLength", 0), 99) if kind == "string" else _PLAIN.get(kind)


def _referred(root: Any, address: str) -> Any:
    for step in address.removeprefix("#").split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        root = root.get(name) if isinstance(root, Mapping) else None
    return root

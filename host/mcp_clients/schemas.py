"""Input schemas of other people's tools: the model reads them, so they are bounded, and marked as theirs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from shared import jsons
from shared.lines import one_line
from shared.untrusted import defused

LARGEST: Final = 64 * 1024
LONGEST: Final = 1024
"""Characters of one text, or of one name below the top."""
FIELD: Final = re.compile(r"[a-zA-Z0-9_.-]{1,64}")
"""What the Messages API takes as the name of an argument."""

_PROSE: Final = frozenset({"description", "title", "$comment", "default", "examples", "example"})
_MARKED: Final = frozenset({"description", "title"})
_NAMES: Final = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
"""Keywords whose keys are names, not keywords."""


def fault(schema: Mapping[str, Any]) -> str | None:
    """Return why a tool with this schema can't be offered, None when it can."""
    if not jsons.fits(schema):
        return "its input schema is nested too deep, or has a number too large"
    if len(jsons.dump_bytes(schema)) > LARGEST:
        return "its input schema is too large"
    fields = schema.get("properties", {})
    if not isinstance(fields, Mapping) or not all(FIELD.fullmatch(name) for name in fields):
        return "an argument has a name that is not one a model can use"
    if any(_odd(text) for text in _exact(schema)):
        return "its input schema has a name or a value that is too long, has line ends, or a tag of the host"
    return None


def marked(server: str, schema: Any, keyword: str = "", *, prose: bool = False) -> Any:
    """Return a schema with its prose cut, on one line, unable to pose as the host, and marked as theirs."""
    if isinstance(schema, str) and (prose or keyword in _PROSE):
        said = " ".join(schema[: 2 * LONGEST].split())
        text = defused(one_line(said if len(said) <= LONGEST else f"{said[:LONGEST]}…"))
        return f"[{server}'s words] {text}" if keyword in _MARKED else text
    prose = prose or (keyword in _PROSE and not isinstance(schema, str))
    if isinstance(schema, list):
        return [marked(server, item, keyword, prose=prose) for item in schema]
    if isinstance(schema, dict):
        named = keyword in _NAMES
        return {key: marked(server, item, "" if named else key, prose=prose) for key, item in schema.items()}
    return schema


def _exact(schema: Any, keyword: str = "") -> Iterator[str]:
    """Yield the names and values that can't be changed without changing what the schema says."""
    if isinstance(schema, str):
        yield schema
    elif isinstance(schema, Mapping):
        yield from schema
        for key, item in schema.items():
            if keyword in _NAMES or key not in _PROSE:
                yield from _exact(item, "" if keyword in _NAMES else key)
    elif isinstance(schema, list):
        for item in schema:
            yield from _exact(item, keyword)


def _odd(text: str) -> bool:
    return len(text) > LONGEST or one_line(text) != text or defused(text) != text

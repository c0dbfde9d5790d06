"""Tools as other servers list them: mended for the Messages API, bounded, marked as theirs, and pinned."""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final

from host.mcp_clients.server_config import ServerConfig
from host.ports import ToolSpec
from shared import jsons, untrusted
from shared.clock import now_ms
from shared.store.sql.tokens import ToolPins as KeptPins
from shared.untrusted import defused, one_line

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
    if (fault := schema_fault(schema)) is not None:
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
    schema = {} if schema is None or schema is True else schema
    if not isinstance(schema, Mapping):
        raise Unmendable("its input schema is not an object")
    kind = schema.get("type", "object")
    if "object" not in (kind if isinstance(kind, list) else [kind]):
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
        if not isinstance(name, str) or FIELD.fullmatch(name):
            continue
        mark = sha256(name.encode("utf-8", "replace")).hexdigest()[:8]
        plain = _UNSAFE_FIELD.sub("_", name).strip("_")[:50]
        is_free = plain and plain not in (*schema["properties"], *new.values())
        new[name] = plain if is_free else f"{plain}_{mark}"
    if new:
        schema["properties"] = {new.get(name, name): of for name, of in schema["properties"].items()}
        if "required" in schema:
            schema["required"] = [new.get(name, name) for name in schema["required"]]
    return {safe: name for name, safe in new.items()}


LARGEST: Final = 64 * 1024
LONGEST: Final = 1024
"""Characters of one text, or of one name below the top."""
FIELD: Final = re.compile(r"[a-zA-Z0-9_.-]{1,64}")
"""What the Messages API takes as the name of an argument."""

_PROSE: Final = frozenset({"description", "title", "$comment", "default", "examples", "example"})
_MARKED: Final = frozenset({"description", "title"})
_NAMES: Final = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
"""Keywords whose keys are names, not keywords."""


def schema_fault(schema: Mapping[str, Any]) -> str | None:
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


MOST_PINS: Final = 1000
"""How many places are remembered; the one known longest makes room."""


class ToolPins:
    """Compares the tools of each place with how they were first seen in the life of the host.

    ``kept`` carries the operator's servers over a restart: the first look of a life is compared with the last
    one of the life before. A restart is therefore how a change is accepted.
    """

    def __init__(self, kept: KeptPins | None = None) -> None:
        self._kept = kept
        self._first: dict[bytes, bytes] = {}
        self._last: dict[bytes, bytes] = {}

    async def changed(self, name: str, config: ServerConfig, specs: Sequence[ToolSpec]) -> bool:
        """Return whether the tools differ from those to compare with."""
        place = hashlib.sha256(f"{name} {config.place}".encode()).digest()
        shown = jsons.dump_bytes([[spec.name, spec.description, dict(spec.input_schema)] for spec in specs])
        digest = hashlib.sha256(shown).digest()
        if self._last.get(place) != digest:
            before = await self._keep(place, digest, config)
            self._make_room(place)
            self._first.setdefault(place, before or digest)
            self._last[place] = digest
        return self._first[place] != digest

    async def _keep(self, place: bytes, digest: bytes, config: ServerConfig) -> bytes | None:
        # What requests bring is not kept: anyone who may ask could fill the store with it.
        if self._kept is None or not config.trusted:
            return None
        return await self._kept.swap(place, digest, now_ms())

    def _make_room(self, place: bytes) -> None:
        if len(self._first) >= MOST_PINS and place not in self._first:
            oldest = next(iter(self._first))
            del self._first[oldest], self._last[oldest]

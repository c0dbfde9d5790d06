"""GET /openapi.json: the contract, made of what the operations declare."""

from collections.abc import Iterable, Mapping
from functools import cached_property
from types import MappingProxyType, NoneType, UnionType
from typing import Any, Final

from pydantic import BaseModel, TypeAdapter
from starlette.requests import Request
from typing_extensions import is_typeddict

from host.http.bodies import NO_NUL
from host.http.routing import ANY, Api, Operation, Parameter, operation
from host.http.runs import FrameStreamResponse

BYTES: Final = {"type": "string", "format": "binary"}
BINARY: Final[Mapping[str, Any]] = {
    "application/octet-stream": BYTES,
    "multipart/form-data": {
        "type": "object",
        "properties": {"path": {"type": "string"}, "file": {"type": "array", "items": BYTES}},
    },
}
"""Schemas of what is no JSON; the format is what makers of clients know (OpenAPI 3.0.3, "Data Types")."""

Schemas = Mapping[Any, dict[str, Any]]
"""How the document speaks of each class: by the name of its schema."""


class OpenApi(Api):
    """Tells of the operations of these routes, and of its own."""

    def __init__(
        self, version: str, operations: Iterable[Operation], events: Mapping[str, Any] = MappingProxyType({})
    ) -> None:
        self._version = version
        self._events = events
        self._declared = [each for each in (*operations, *self.operations()) if each.listed]

    @operation("GET", "/openapi.json", scope=ANY, content="application/json")
    async def get(self, request: Request) -> dict[str, Any]:
        """The OpenAPI document."""
        return self._document

    @cached_property
    def _document(self) -> dict[str, Any]:
        """Made when it is first asked for: nothing that a start should wait for."""
        schemas, components = _schemas(self._declared, self._events.values())
        paths: dict[str, dict[str, Any]] = {}
        for each in self._declared:
            paths.setdefault(_path(each), {})[each.method.lower()] = _described(each, schemas)
        return {
            "openapi": "3.1.0",
            "info": {
                "title": "PicoClaw",
                "version": self._version,
                "license": {"name": "MIT", "identifier": "MIT"},
            },
            "security": [{"bearer": []}],
            "paths": paths,
            "webhooks": {name: {"post": _event(name, kind, schemas)} for name, kind in self._events.items()},
            "components": {
                "schemas": components,
                "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
            },
        }


def _event(name: str, kind: Any, schemas: Schemas) -> dict[str, Any]:
    """Describe what receivers of webhooks are sent."""
    return {
        "summary": (kind.__doc__ or "").partition("\n")[0].removesuffix("."),
        "operationId": f"told_{name.replace('.', '_')}",
        "requestBody": {"content": _json(kind, schemas), "required": True},
        "responses": {"2XX": {"description": "Heard"}, "410": {"description": "Nothing more is wanted"}},
        "security": [],
    }


def _schemas(operations: Iterable[Operation], events: Iterable[Any]) -> tuple[Schemas, dict[str, Any]]:
    """Return how to speak of all classes of bodies, and the schemas that this names."""
    classes = set(events) | {
        kind
        for each in operations
        for kind in (each.body, each.reads, each.error, *each.answers, *each.also.values())
    }
    bodies = sorted(filter(_is_body, classes), key=str)
    schemas, components = TypeAdapter.json_schemas(
        [(kind, "validation", TypeAdapter(kind)) for kind in bodies],
        ref_template="#/components/schemas/{model}",
    )
    return {kind: schema for (kind, _), schema in schemas.items()}, components["$defs"]


def _is_body(kind: Any) -> bool:
    """Return whether it is a class of bodies: not None, and no response of another kind."""
    model = isinstance(kind, type) and issubclass(kind, BaseModel)
    return model or is_typeddict(kind) or isinstance(kind, UnionType)


def _described(declared: Operation, schemas: Schemas) -> dict[str, Any]:
    status = 204 if NoneType in declared.answers else declared.status
    responses = {str(status): _answer(declared, schemas)}
    for status, kind in declared.also.items():
        content = {"content": _json(kind, schemas)} if kind in schemas else {}
        responses[str(status)] = {"description": "Taken", **content}
    for status in _refusals(declared):
        responses[str(status)] = {"description": "An error", "content": _json(declared.error, schemas)}
    found: dict[str, Any] = {
        "summary": declared.summary,
        "operationId": _operation_id(declared),
        "parameters": _parameters(declared),
        "responses": responses,
    }
    body = declared.body or declared.reads
    if body is not None:
        # An empty body is an empty object.
        required = "required" in TypeAdapter(body).json_schema()
        found["requestBody"] = {"content": _json(body, schemas), "required": required}
    if declared.binary is not None:
        found["requestBody"] = {"content": {declared.binary: {"schema": BINARY[declared.binary]}}}
    if declared.open:
        found["security"] = []
    elif declared.scopes - {ANY}:
        # For a scheme without scopes these are the roles that a caller needs (OpenAPI 3.1.0, 4.8.30).
        found["security"] = [{"bearer": [role]} for role in sorted(declared.scopes)]
    return found


def _answer(declared: Operation, schemas: Schemas) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if declared.content is not None:
        schema = BINARY.get(declared.content)
        content[declared.content] = {} if schema is None else {"schema": schema}
    for kind in declared.answers:
        if kind in schemas:
            content |= _json(kind, schemas)
        elif isinstance(kind, type) and issubclass(kind, FrameStreamResponse):
            content["text/event-stream"] = {}
    return {"description": declared.summary} | ({"content": content} if content else {})


def _json(kind: Any, schemas: Schemas) -> dict[str, Any]:
    return {"application/json": {"schema": schemas[kind]}}


def _refusals(declared: Operation) -> list[int]:
    """Return the statuses of errors: the operation's own, and what its path, its body and the token bring."""
    # 503: the host is stopping, or its store can't take anything.
    token = () if declared.open else (400, 401, 403, 408, 429, 500, 503)
    named = (404,) if "{" in declared.path else ()
    body = (413, 415) if declared.body or declared.reads else (413,) if declared.binary else ()
    return sorted({*declared.errors, *token, *named, *body})


def _path(declared: Operation) -> str:
    """Return the path without what says how the router reads an id."""
    return declared.path.replace(":path}", "}")


def _operation_id(declared: Operation) -> str:
    words = _path(declared).replace("{", "").replace("}", "").replace(".", "_").split("/")
    return "_".join([declared.method.lower(), *filter(None, words)])


def _parameters(declared: Operation) -> list[dict[str, Any]]:
    named = [part[1:-1] for part in _path(declared).split("/") if part.startswith("{")]
    ids = [Parameter(name, "The id", place="path", required=True) for name in named]
    return [
        {
            "name": each.name,
            "in": each.place,
            "required": each.required,
            "description": each.said,
            "schema": _storable(each.schema) if each.place == "query" else each.schema,
        }
        for each in (*ids, *declared.parameters)
    ]


def _storable(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the schema of a query's value, which no text with U+0000 may be."""
    return {**schema, "pattern": NO_NUL} if schema == {"type": "string"} else schema

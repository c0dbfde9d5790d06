"""Routes. Each is declared once, on the method that answers it; the OpenAPI document is made of the same.

A new route is one method of an ``Api``: the annotations of its parameter ``body`` and of what it returns are
the classes of both bodies, the first line of its docstring says what it does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from datetime import datetime, tzinfo
from functools import cached_property
from types import UnionType
from typing import Any, Final, Literal, NamedTuple, TypedDict, Union, get_args, get_origin, get_type_hints

from starlette.convertors import PathConvertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route as Path
from starlette.routing import Router
from starlette.types import Receive, Scope, Send

from host.http.bodies import JSON, LONGEST_KEY, Body, ErrorShape, read_body, storable
from shared.clock import ms_of
from shared.errors import InvalidInput

Answering = Callable[..., Awaitable[Any]]
"""A method that takes a request, and its ``body`` when it has that parameter. What it returns is the body of
the answer: a mapping, None for an answer without one, or a whole response.
"""

KINDS: Final[Mapping[str, Mapping[str, Any]]] = {
    "text": {"type": "string"},
    "flag": {"type": "boolean"},
    "instant": {"type": "string", "format": "date-time"},
}


class Parameter(NamedTuple):
    """What a request may say beside its body, and how that is read.

    ``kind`` is one of KINDS, the texts of which it is one, or a schema as OpenAPI has it.
    """

    name: str
    said: str
    kind: Literal["text", "flag", "instant"] | tuple[str, ...] | Mapping[str, Any] = "text"
    place: Literal["path", "query", "header"] = "query"
    required: bool = False

    @property
    def schema(self) -> Mapping[str, Any]:
        """What it may be, as OpenAPI has it."""
        if isinstance(self.kind, tuple):
            return {"type": "string", "enum": [str(each) for each in self.kind]}
        return KINDS[self.kind] if isinstance(self.kind, str) else self.kind

    def text(self, request: Request) -> str | None:
        """Return what a query says, None if nothing; raises InvalidInput for none of the choices."""
        given = request.query_params.get(self.name)
        if isinstance(self.kind, tuple) and given not in (None, *self.kind):
            raise InvalidInput(f"{self.name}: must be one of {', '.join(self.kind)}")
        return given

    def number(self, request: Request, otherwise: int) -> int:
        """Return a whole number of a query; raises InvalidInput."""
        given = request.query_params.get(self.name, str(otherwise))
        schema = self.schema
        least, most = schema["minimum"], schema["maximum"]
        if not (given.isascii() and given.isdigit() and len(given) <= 6 and least <= int(given) <= most):
            raise InvalidInput(f"{self.name}: must be a whole number from {least} to {most}")
        return int(given)

    def flag(self, request: Request) -> bool:
        """Return whether a query says so; raises InvalidInput."""
        given = request.query_params.get(self.name, "false").lower()
        if given not in ("true", "false", "1", "0"):
            raise InvalidInput(f"{self.name}: must be true or false")
        return given in ("true", "1")

    def instant(self, request: Request, zone: tzinfo | None = None) -> int | None:
        """Return the instant that a query names, None without one; raises InvalidInput.

        ``zone`` is that of a time without an offset, which is refused if there is none.
        """
        given = request.query_params.get(self.name)
        if given is None:
            return None
        try:
            moment = datetime.fromisoformat(given)
        except ValueError:
            moment = None
        if moment is None or not (moment.tzinfo or zone):
            wanted = "a time" if zone else "a time with its offset"
            raise InvalidInput(f"{self.name}: must be {wanted}, for example 2027-03-01T09:00:00Z")
        return ms_of(moment if moment.tzinfo else moment.replace(tzinfo=zone))


LIMIT: Final = Parameter(
    "limit", "Items on a page; 100 if not given", {"type": "integer", "minimum": 1, "maximum": 1000}
)
CURSOR: Final = Parameter(
    "cursor", "next_cursor of the page before; any other is 400", {"type": "string", "format": "cursor"}
)
PAGE: Final = (LIMIT, CURSOR)


class PageAsked(TypedDict):
    """Which page of a list is asked for."""

    limit: int
    cursor: str | None


def page_of(request: Request) -> PageAsked:
    """Return ``limit`` and ``cursor`` of a list request; raises InvalidInput."""
    return {"limit": LIMIT.number(request, 100), "cursor": CURSOR.text(request)}


OF_CONVERSATION: Final = Parameter("conversation_id", "Only this conversation's")
OF_PRINCIPAL: Final = Parameter(
    "principal_id", "Another principal's, or `*` for everybody's; with API_TOKEN alone"
)
PRINTABLE: Final = (
    r"^[!-~\u00a1-\u00ac\u00ae-\u00ff]([ -~\u00a1-\u00ac\u00ae-\u00ff]*[!-~\u00a1-\u00ac\u00ae-\u00ff])?$"
)
"""What a header can carry and is printable, without white space around it."""
KEY: Final = Parameter(
    "Idempotency-Key",
    "Printable; the same key with the same body is the same request, for 24 h",
    {"type": "string", "minLength": 1, "maxLength": LONGEST_KEY, "pattern": PRINTABLE},
    "header",
)

ANY: Final = "*"


@dataclass(frozen=True)
class Operation:
    """One method of HTTP at one path."""

    answering: Answering
    method: str
    path: str
    status: int = 200
    parameters: Sequence[Parameter] = ()
    """Beside those of the path."""
    errors: Sequence[int] = ()
    """Their statuses, beside those that path, body and token bring."""
    also: Mapping[int, Any] = field(default_factory=dict)
    """Answers beside ``status``: the class of each one's body, None without one."""
    error: Any = ErrorShape
    reads: Any = None
    """The class of a body that the method reads itself."""
    binary: str | None = None
    """The media type of a body of any bytes that the method reads itself."""
    content: str | None = None
    """The media type of an answer that is no JSON of a class."""
    scope: str | None = None
    """What a token has to allow (``a|b``: one of them); ANY: it is for every token, None: the operator's."""
    open: bool = False
    """Whether it needs no token."""
    listed: bool = True
    """Whether the document tells of it."""

    @property
    def scopes(self) -> frozenset[str]:
        """The scopes of which a token needs one; none: the operator alone may ask."""
        return frozenset((self.scope or "").split("|")) - {""}

    @cached_property
    def takes(self) -> Set[str] | None:
        """The names that a query may have; None: any, where others define the door."""
        if self.error is not ErrorShape or self.scope == "mcp":
            return None
        return {each.name for each in self.parameters if each.place == "query"}

    @cached_property
    def is_bare(self) -> bool:
        """Whether a body has to say nothing."""
        is_ours = self.method == "POST" and self.listed and not self.open and self.takes is not None
        return is_ours and self.body is self.reads is self.binary is None

    @property
    def summary(self) -> str:
        """What it does, in a sentence without its end."""
        return (self.answering.__doc__ or "").partition("\n")[0].removesuffix(".")

    @cached_property
    def body(self) -> Any:
        """The class of the request's body, None without one."""
        return get_type_hints(self.answering).get("body")

    @cached_property
    def answers(self) -> tuple[Any, ...]:
        """The classes of what is answered: shapes of JSON, and responses of another kind."""
        said = get_type_hints(self.answering)["return"]
        each = get_args(said) if get_origin(said) in (Union, UnionType) else (said,)
        return tuple(get_args(one)[0] if get_origin(one) is JSON else one for one in each)


def operation(method: str, path: str, **declared: Any) -> Callable[[Answering], Operation]:
    """Declare what a method of an ``Api`` answers; ``declared`` are the other fields of ``Operation``."""
    return lambda answering: Operation(answering, method, path, **declared)


class Api:
    """What has operations among its methods."""

    @classmethod
    def operations(cls) -> list[Operation]:
        """Return the operations in their order."""
        return [declared for declared in vars(cls).values() if isinstance(declared, Operation)]

    def open_paths(self) -> Set[str]:
        """Return the paths that need no token; those that are told by an id have to be listed."""
        return {each.path for each in self.operations() if each.open and "{" not in each.path}

    def routes(self) -> list[Route]:
        """Return the operations of this object."""
        return [Route(self, declared) for declared in self.operations()]


class Route(NamedTuple):
    """An operation, and the object that it is a method of."""

    api: Api
    operation: Operation


class _AnyPath(PathConvertor):
    """The rest of a path, also of a file whose name holds a line break."""

    regex = "(?s:.*)"


register_url_convertor("path", _AnyPath())

Reached = Callable[[Request, Operation], Awaitable[None]]


class _Methods:
    """All that is answered at one path: so a 405 names all methods that there are."""

    def __init__(self, routes: Iterable[Route], reached: Reached) -> None:
        self._reached = reached
        self._routes = {route.operation.method: route for route in routes}
        if "GET" in self._routes:
            self._routes["HEAD"] = self._routes["GET"]
        self.names = list(self._routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        api, declared = self._routes[scope["method"]]
        request = Request(scope, receive, send)
        scope["operation"] = declared
        if b"%2" in (raw := scope.get("raw_path") or b""):
            _refuse_hidden_slash(raw, declared.path)
        if not scope["open"]:
            scope["caller"].require(declared)
            if scope["query_string"]:
                _check_query(request, declared)
            if scope["path_params"] or scope["query_string"]:
                await self._reached(request, declared)
        given = () if declared.body is None else (await read_body(request, declared.body),)
        if declared.is_bare and _has_body(request):
            await read_body(request, Body)
        answer = await declared.answering(api, request, *given)
        if answer is None:
            answer = Response(status_code=204)
        elif isinstance(answer, dict):
            answer = JSON(answer, status_code=declared.status)
        await answer(scope, receive, send)


def _has_body(request: Request) -> bool:
    return request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers


def _refuse_hidden_slash(raw: bytes, path: str) -> None:
    """Raise HTTPException where %2F stands for a slash of an operation's path: it is part of a name."""
    *before, last = path.split("/")
    names = raw.lower().split(b"/")
    if any(b"%2f" in name for name in (names[: len(before)] if ":path}" in last else names)):
        raise HTTPException(404)


def _check_query(request: Request, declared: Operation) -> None:
    """Raise InvalidInput for what no database keeps, and for what the operation doesn't take."""
    given = request.query_params.multi_items()
    names = [name for name, _ in given]
    for name, text in given:
        try:
            storable(text)
        except ValueError as error:
            raise InvalidInput(f"{name}: {error}") from None
        if declared.takes is None:
            continue
        if name not in declared.takes:
            raise InvalidInput(f"{name}: is not a known parameter")
        if names.count(name) > 1:
            raise InvalidInput(f"{name}: may be given once")


async def _unnoted(request: Request, declared: Operation) -> None:
    pass


def router(apis: Iterable[Api], reached: Reached = _unnoted) -> Router:
    """Return the application of all operations. It raises HTTPException for what is at none of them.

    ``reached`` hears of each request that names something, and whose caller may make it.
    """
    routes = [route for api in apis for route in api.routes()]
    by_path: dict[str, list[Route]] = {}
    # Where a path could also be read as an id, it is the path.
    for route in sorted(routes, key=lambda route: "{" in route.operation.path):
        by_path.setdefault(route.operation.path, []).append(route)
    each = [(path, _Methods(some, reached)) for path, some in by_path.items()]
    paths = [Path(path, methods, methods=methods.names) for path, methods in each]
    return Router(routes=paths, redirect_slashes=False)

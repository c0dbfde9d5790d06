"""JSON-RPC over HTTP POST, as MCP has it in both protocol eras: messages, headers, statuses, sessions.

Sessions are of clients of the handshake era: bounded, and their opener's alone.
"""

import base64
import binascii
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NotRequired

import anyio
from pydantic import ConfigDict, with_config
from starlette.datastructures import Headers
from typing_extensions import TypedDict

from host.http.callers import Caller
from shared import jsons
from shared.ask_contract import TASK_METHODS
from shared.clock import monotonic_ms
from shared.ids import MCP_SESSION, new_id

RequestId = int | str

PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
METHOD_NOT_FOUND: Final = -32601
INVALID_PARAMS: Final = -32602
INTERNAL_ERROR: Final = -32603
HEADER_MISMATCH: Final = -32020
MISSING_CAPABILITY: Final = -32021
UNSUPPORTED_VERSION: Final = -32022
REQUEST_CANCELLED: Final = -32800

STATUS: Final[Mapping[int, int]] = {
    PARSE_ERROR: 400,
    INVALID_REQUEST: 400,
    INVALID_PARAMS: 400,
    HEADER_MISMATCH: 400,
    MISSING_CAPABILITY: 400,
    UNSUPPORTED_VERSION: 400,
    METHOD_NOT_FOUND: 404,
}
"""HTTP status of an error in the era without a handshake; the older one answers requests with 200."""

VERSION_HEADER: Final = "mcp-protocol-version"
METHOD_HEADER: Final = "mcp-method"
NAME_HEADER: Final = "mcp-name"
SESSION_HEADER: Final = "mcp-session-id"

VERSION_META: Final = "io.modelcontextprotocol/protocolVersion"
NAMED: Final[Mapping[str, str]] = {
    "tools/call": "name",
    "prompts/get": "name",
    "resources/read": "uri",
} | dict.fromkeys(TASK_METHODS, "taskId")
"""Methods whose subject is repeated in the Mcp-Name header, and the parameter that holds it."""


@with_config(ConfigDict(extra="allow"))
class Outcome(TypedDict, total=False):
    """How a request ended: with one of the two."""

    result: dict[str, Any]
    error: dict[str, Any]


class JsonRpcShape(Outcome):
    """One message of JSON-RPC 2.0, as the Model Context Protocol has them."""

    jsonrpc: Literal["2.0"]
    id: NotRequired[RequestId | None]


@with_config(ConfigDict(extra="allow"))
class JsonRpcErrorShape(TypedDict):
    """A refusal in the protocol's own words."""

    jsonrpc: Literal["2.0"]
    id: NotRequired[RequestId | None]
    error: dict[str, Any]


@with_config(ConfigDict(extra="ignore"))
class JsonRpcRequestShape(TypedDict):
    """A request, or without ``id`` a notification; ``initialize`` comes first, or the stateless headers."""

    jsonrpc: Literal["2.0"]
    id: NotRequired[RequestId]
    method: str
    params: NotRequired[dict[str, Any]]


class Refused(Exception):
    """A message that is answered with a JSON-RPC error at once."""

    def __init__(
        self, code: int, message: str, *, request_id: RequestId | None = None, data: Any = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.request_id = request_id
        self.data = data

    def body(self) -> JsonRpcErrorShape:
        """Return the JSON-RPC message."""
        more = {} if self.data is None else {"data": self.data}
        error = {"code": self.code, "message": self.message, **more}
        return {"jsonrpc": "2.0", "id": self.request_id, "error": error}


@dataclass(frozen=True, slots=True)
class Incoming:
    """One message of a client; ``answer`` is its reply to a request that we never make."""

    kind: Literal["request", "notification", "answer"]
    id: RequestId | None
    method: str
    params: dict[str, Any]


def answer(message: Incoming, outcome: Outcome) -> JsonRpcShape:
    """Return the answer to a request."""
    return {"jsonrpc": "2.0", "id": message.id, **outcome}


def read(raw: bytes) -> Incoming:
    """Return the one message of a body; raises Refused."""
    try:
        value = jsons.loads(raw)
    except jsons.JSONDecodeError:
        raise Refused(PARSE_ERROR, "The body is not JSON in UTF-8.") from None
    if not isinstance(value, dict) or value.get("jsonrpc") != "2.0":
        raise Refused(INVALID_REQUEST, "The body is not one JSON-RPC 2.0 message.")
    request_id, method = known_id(value.get("id")), value.get("method")
    if "id" in value and request_id is None:
        raise Refused(INVALID_REQUEST, "The id is neither a text nor a whole number.")
    if "method" not in value and ("result" in value or "error" in value):
        return Incoming("answer", request_id, "", {})
    params = value.get("params", {})
    if not isinstance(method, str) or not isinstance(params, dict):
        raise Refused(INVALID_REQUEST, "Not a JSON-RPC 2.0 message.", request_id=request_id)
    return Incoming("request" if "id" in value else "notification", request_id, method, params)


def known_id(value: object) -> RequestId | None:
    """Return a request's id, None for what can't be one."""
    return value if isinstance(value, str) or (isinstance(value, int) and type(value) is int) else None


def version_of(headers: Headers) -> str | None:
    """Return the protocol version that the headers name."""
    return _trimmed(headers, VERSION_HEADER)


def check_headers(message: Incoming, headers: Headers) -> None:
    """Raise Refused unless the headers repeat what the request says (2026-07-28)."""
    for name in (VERSION_HEADER, METHOD_HEADER, NAME_HEADER):
        if len(headers.getlist(name)) > 1:
            raise _mismatch(message, f"{name} header appears more than once")
    meta = message.params.get("_meta")
    if not isinstance(meta, dict) or VERSION_META not in meta:
        said = f"params._meta is missing {VERSION_META}"
        raise Refused(INVALID_PARAMS, said, request_id=message.id)
    if version_of(headers) != meta[VERSION_META]:
        raise _mismatch(message, f"{VERSION_HEADER} header does not match the request's protocol version")
    if _trimmed(headers, METHOD_HEADER) != message.method:
        raise _mismatch(message, f"{METHOD_HEADER} header does not match the request's method")
    subject = message.params.get(NAMED.get(message.method, ""))
    if subject is not None and _decoded(_trimmed(headers, NAME_HEADER)) != subject:
        raise _mismatch(message, f"{NAME_HEADER} header does not match the request's subject")


def _trimmed(headers: Headers, name: str) -> str | None:
    """Return a field's value without the white space around it (RFC 9110, 5.5)."""
    value = headers.get(name)
    return None if value is None else value.strip(" \t")


def _mismatch(message: Incoming, sentence: str) -> Refused:
    return Refused(HEADER_MISMATCH, sentence, request_id=message.id)


def _decoded(value: str | None) -> str | None:
    """Return a header's text; what no header can carry comes as ``=?base64?...?=``."""
    if value is None or not (value.startswith("=?base64?") and value.endswith("?=")):
        return value
    try:
        return base64.b64decode(value[9:-2], validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return None


MOST: Final = 1024
MOST_OF_A_CALLER: Final = 64
IDLE_MS: Final = 30 * 60 * 1000


@dataclass(slots=True)
class McpSession:
    """One session: no process and no task of its own, the tool server is its conversation's."""

    id: str
    caller: Caller
    version: str
    used_at: float
    running: dict[RequestId | None, anyio.CancelScope] = field(default_factory=dict)

    @contextmanager
    def cancellable(self, request_id: RequestId | None) -> Iterator[None]:
        """Let the block be cancelled by the request's id; it then ends without an exception."""
        with anyio.CancelScope() as scope:
            self.running[request_id] = scope
            try:
                yield
            finally:
                del self.running[request_id]

    def cancel(self, request_id: RequestId | None) -> None:
        """Cancel a running request; any other id is nothing."""
        scope = self.running.get(request_id)
        if scope is not None:
            scope.cancel()


class McpSessions:
    """Opens, finds and ends sessions. The longest unused one makes room: its caller's own, or of the
    principal that has most of them.
    """

    def __init__(
        self,
        *,
        most: int = MOST,
        most_of_a_caller: int = MOST_OF_A_CALLER,
        idle_ms: float = IDLE_MS,
        clock: Callable[[], float] = monotonic_ms,
    ) -> None:
        self._most = most
        self._most_of_a_caller = most_of_a_caller
        self._idle_ms = idle_ms
        self._clock = clock
        self._open: OrderedDict[str, McpSession] = OrderedDict()

    def __len__(self) -> int:
        return len(self._open)

    def open(self, caller: Caller, version: str) -> McpSession:
        """Open a session for the caller."""
        self._make_room(caller)
        session = McpSession(new_id(MCP_SESSION), caller, version, self._clock())
        self._open[session.id] = session
        return session

    def find(self, session_id: str, caller: Caller) -> McpSession | None:
        """Return the caller's session, now the last used; None: absent, expired, or somebody else's."""
        session = self._open.get(session_id)
        if session is None or session.caller != caller:
            return None
        if self._expired(session):
            del self._open[session_id]
            return None
        session.used_at = self._clock()
        self._open.move_to_end(session_id)
        return session

    def end(self, session_id: str, caller: Caller) -> bool:
        """End the caller's session; False if there is none."""
        return self.find(session_id, caller) is not None and self._open.pop(session_id, None) is not None

    def _expired(self, session: McpSession) -> bool:
        return not session.running and session.used_at < self._clock() - self._idle_ms

    def _make_room(self, caller: Caller) -> None:
        """Forget what is expired, then the longest unused: the order of the table is that of use."""
        for session in list(self._open.values()):
            if not self._expired(session):
                break
            del self._open[session.id]
        own = [session.id for session in self._open.values() if session.caller == caller]
        if len(own) >= self._most_of_a_caller:
            del self._open[own[0]]
        elif len(self._open) >= self._most:
            whose = {session.id: session.caller.principal.id for session in self._open.values()}
            ((most, _),) = Counter(whose.values()).most_common(1)
            del self._open[next(each for each, principal_id in whose.items() if principal_id == most)]

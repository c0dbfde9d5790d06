"""Bodies: parsed strictly, refused with the field's name, never coerced; large ones are lent to a thread.

A thread reads past the event loop and the parser, in large pieces, while bytes come fast.
"""

import contextlib
import hashlib
import re
import socket
from collections.abc import Iterator
from functools import partial
from typing import Annotated, Any, Final, Generic, NotRequired, TypeVar
from uuid import NAMESPACE_URL, uuid5

import anyio.to_thread
import httptools
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
)
from pydantic_core import ErrorDetails
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from shared import errors, jsons
from shared.clock import monotonic_ms
from shared.shapes import Shape
from shared.values import Idempotency


class ErrorShape(Shape):
    """Every error; ``conversation_id`` when a conversation is busy, or waits for answers."""

    error: str
    code: str
    request_id: str
    conversation_id: NotRequired[str]
    approval_ids: NotRequired[list[str]]
    decision: NotRequired[str]


A = TypeVar("A")


class JSON(Response, Generic[A]):
    """A JSON answer by the project's encoder."""

    media_type = "application/json"

    def render(self, content: A) -> bytes:
        """Encode the content."""
        return jsons.dump_bytes(content)


def error_response(error: errors.PicoError, request_id: str) -> JSON[ErrorShape]:
    """Return the error as every error leaves: a sentence, a code, the request's id."""
    body: ErrorShape = {"error": error.message, "code": error.code, "request_id": request_id}
    if isinstance(error, errors.ConversationBusy | errors.ApprovalPending):
        body["conversation_id"] = error.conversation_id
    if isinstance(error, errors.ApprovalPending):
        body["approval_ids"] = error.approval_ids
    if isinstance(error, errors.AlreadyDecided):
        body["decision"] = error.decision
    return JSON(body, status_code=error.status, headers=error_headers(error))


def error_headers(error: errors.PicoError) -> dict[str, str]:
    """Return what an error says beside its body."""
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    if error.status == 408:
        headers["Connection"] = "close"
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, errors.MethodNotAllowed):
        headers["Allow"] = error.allowed
    if isinstance(error, errors.RangeUnsatisfiable):
        headers["Content-Range"] = f"bytes */{error.size}"
    return headers


M = TypeVar("M", bound="Body")

LONGEST_KEY: Final = 200
MOST_PARTS: Final = 60_000
"""Values, names and brackets of a body's JSON: they cost more than their bytes."""

SMALL: Final = 1024 * 1024
"""Bytes of a body that most routes take (http-api: "Errors"); a larger one is parsed off the event loop."""
LARGEST: Final = 28 * 1024 * 1024
"""Bytes of a body that brings files: 20 MiB in base64, and what is said beside."""
# Chat programs send their whole history again.
LARGE: Final = {"/chat": SMALL, "/v1/chat/completions": 8 * SMALL, "/v1/responses": 8 * SMALL}
"""Where files come along, and how many bytes of a body may be something else."""
_DATA: Final = re.compile(
    rb'"(?:data|file_data|url|image_url)"\s*:\s*"(?i:data:[^",]{0,200};base64,)?[A-Za-z0-9+/=\\\s]*"'
)
DIGEST: Final = "body_sha256"
"""Where a request's scope has the digest of a large body, and RELEASE what to call once it is taken in."""
RELEASE: Final = "release_body"
CAME: Final = "body_came"
"""Is in a request's scope once its body has come, so that nobody has to wait for it."""


class TooManyValues(errors.InvalidInput):
    """The body's JSON holds more than is made into objects."""


class Body(BaseModel):
    """A request body: strict types, no unknown fields."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, defer_build=True)


def storable(value: Any) -> Any:
    """Return the value; raises ValueError for a text that the store can't keep."""
    if isinstance(value, str) and "\x00" in value:
        raise ValueError("must not contain the character U+0000")
    return value


def _seen(value: Any) -> Any:
    if isinstance(value, str) and not value.strip():
        raise ValueError("must not be blank")
    return storable(value)


NO_NUL: Final = r"^[^\u0000]*$"
Text = Annotated[str, BeforeValidator(storable), Field(json_schema_extra={"pattern": NO_NUL})]
"""Text without NUL."""

NOT_BLANK: Final = r"^[^\u0000]*[^\u0000\s][^\u0000]*$"
NotBlank = Annotated[str, BeforeValidator(_seen), Field(json_schema_extra={"pattern": NOT_BLANK})]
"""Text with something to see in it."""


def _schema(value: Any) -> Any:
    if not isinstance(value, dict | bool | None):
        raise ValueError("must be a JSON Schema: an object, or true or false")
    return value


OutputSchema = Annotated[
    dict[str, Any] | bool | None,
    BeforeValidator(_schema),
    WithJsonSchema({"anyOf": [{"type": "object"}, {"type": "boolean"}, {"type": "null"}]}),
]
"""What an answer has to be; the host's judge says whether the schema can be used."""

WHOLE: Final = BeforeValidator(jsons.whole)
"""For whole numbers, behind their bounds."""


async def read_body(request: Request, model: type[M]) -> M:
    """Return the request's body as ``model``; an empty body is an empty object.

    Raises NotJson, TooLarge, and InvalidInput naming the first wrong field.
    """
    raw = await raw_body(request)
    if len(raw) <= SMALL:
        return parsed(raw, model)
    most = LARGE.get(request.scope["path"], LARGEST)
    request.scope[DIGEST], body = await anyio.to_thread.run_sync(_large, raw, model, most)
    return body


def _large(raw: bytes, model: type[M], most: int) -> tuple[str, M]:
    """Return the digest of a body, and what it says, if no more than ``most`` bytes are no files."""
    if len(raw) - sum(len(data[0]) for data in _DATA.finditer(raw)) > most:
        raise errors.TooLarge(f"The body is larger than {most} bytes without the data of its files.")
    return hashlib.sha256(raw).hexdigest(), parsed(raw, model)


def forget_body(request: Request) -> None:
    """Let go of a body that was taken in, so that another large one may come."""
    if DIGEST in request.scope:
        request._body = b""
        request.scope[RELEASE]()


def parsed(raw: bytes, model: type[M]) -> M:
    """Return a body's JSON as ``model``; raises InvalidInput."""
    try:
        value = jsons.loads(raw or b"{}")
    except jsons.JSONDecodeError as error:
        raise errors.InvalidInput(f"body: is not valid JSON in UTF-8 (line {error.lineno})") from error
    except RecursionError as error:
        raise errors.InvalidInput("body: is nested too deeply") from error
    if not isinstance(value, dict):
        raise errors.InvalidInput("body: must be a JSON object")
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise errors.InvalidInput(
            _sentence(error.errors(include_url=False, include_input=False)[0])
        ) from None


async def raw_body(request: Request) -> bytes:
    """Return the body's bytes; raises NotJson (declared as something else), InvalidInput (half, too much)."""
    declared = request.headers.get("content-type", "application/json")
    kind = declared.partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise errors.NotJson("Content-Type: must be application/json")
    refuse_packed(request)
    try:
        raw = await request.body()
    except ClientDisconnect:
        # Nobody reads the answer; the log shows what it was, without a trace.
        raise errors.InvalidInput("body: ended before it was whole") from None
    if len(raw) > MOST_PARTS and not await anyio.to_thread.run_sync(jsons.few, raw, MOST_PARTS):
        raise TooManyValues(f"body: has more than {MOST_PARTS} values, names and brackets")
    return raw


def refuse_packed(request: Request) -> None:
    """Raise NotJson for a body that its sender compressed: kept as it came it would be something else."""
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise errors.NotJson("Content-Encoding: send the body without compression")


async def idempotency(request: Request) -> Idempotency | None:
    """Return the caller's Idempotency-Key bound to route and body; raises InvalidInput."""
    key = request.headers.get("idempotency-key")
    if key is None:
        return None
    if not 0 < len(key) <= LONGEST_KEY or not key.isprintable():
        raise errors.InvalidInput(f"Idempotency-Key: must be 1 to {LONGEST_KEY} printable characters")
    return Idempotency(
        request.scope["caller"].stored(request.scope["path"]),
        key,
        request.scope.get(DIGEST) or hashlib.sha256(await request.body()).hexdigest(),
    )


def id_by(key: Idempotency, kind: str) -> str:
    """Return the id that what this key makes always gets, so that a repeated request can't make a second."""
    return f"{kind}-{uuid5(NAMESPACE_URL, chr(10).join((key.route, key.key, key.digest)))}"


def _sentence(fault: ErrorDetails) -> str:
    field = ".".join(str(part) for part in fault["loc"]) or "body"
    kind = fault["type"]
    if kind == "missing":
        return f"{field}: is required"
    if kind == "extra_forbidden":
        return f"{field}: is not a known field"
    limit = fault.get("ctx", {}).get("max_length")
    if limit is not None and fault["ctx"].get("field_type") not in ("List", "Dictionary"):
        return f"{field}: must have at most {limit} characters"
    if kind == "too_short" and fault["ctx"].get("field_type") not in ("List", "Dictionary"):
        return f"{field}: must not be empty"
    if kind == "value_error":
        return f"{field}: {fault['ctx']['error']}"
    message = fault["msg"]
    return f"{field}: {message[0].lower()}{message[1:]}"


LEND: Final = "lend"
"""The key in a PUT's scope of what lends its body: ``LendingProtocol.lend`` for this request."""
PIECE: Final = 1 << 20
BURST: Final = 16 * PIECE
"""Bytes that are read before the event loop looks at the connection again."""
BURST_MS: Final = 500.0
GAP_S: Final = 0.01
"""How long a thread waits for the next bytes; longer waits are the event loop's."""


class LentBody:
    """What is ``left`` of a body, of which ``most`` bytes may be read."""

    def __init__(self, source: socket.socket, left: int) -> None:
        self.left = left
        self.most = min(left, BURST)
        self._source = source
        source.settimeout(GAP_S)

    def pieces(self) -> Iterator[memoryview]:
        """Yield what comes without a pause, in a thread; how a connection ends is seen by its owner."""
        buffer, end = memoryview(bytearray(PIECE)), self.left - self.most
        until = monotonic_ms() + BURST_MS
        with contextlib.suppress(OSError):
            while self.left > end and monotonic_ms() < until:
                came = self._source.recv_into(buffer[: self.left - end])
                if not came:
                    return
                self.left -= came
                yield buffer[:came]


class LendingProtocol(HttpToolsProtocol):
    """uvicorn's protocol, which may lend a body whose length was declared."""

    def __init__(self, **parts: Any) -> None:
        super().__init__(**parts)
        self._came = 0
        """Bytes of the present body."""
        self._whole = 0
        """Its length, once it was lent: the parser, a new one, goes on behind it."""

    def on_headers_complete(self) -> None:
        """Begin a request (the parser's call)."""
        super().on_headers_complete()
        self._came = 0
        if self.scope["method"] == "PUT" and self.scheme == "http":
            self.scope[LEND] = partial(self.lend, self.cycle)  # type: ignore[typeddict-unknown-key]

    def on_body(self, body: bytes) -> None:
        """Take a piece of a body (the parser's call)."""
        self._came += len(body)
        super().on_body(body)

    def feed(self, data: memoryview) -> memoryview:
        """Take what belongs to a lent body, and return what follows."""
        piece = data[: self._whole - self._came]
        self.on_body(bytes(piece))
        self._end_lent()
        return data[len(piece) :]

    @contextlib.contextmanager
    def lend(self, cycle: RequestResponseCycle) -> Iterator[LentBody | None]:
        """Lend the rest of a body that comes faster than it is taken, so that reading has paused."""
        length = self._length_of(cycle)
        if not length or not self.flow.read_paused or cycle.body or self.transport.is_closing():
            yield None
            return
        if not self._whole:
            self._whole, self.parser = length, httptools.HttpRequestParser(self)
        with self.transport.get_extra_info("socket").dup() as source:
            body = LentBody(source, length - self._came)
            try:
                yield body
            finally:
                self._came = length - body.left
                self._end_lent()

    def _length_of(self, cycle: RequestResponseCycle) -> int:
        if cycle is not self.cycle or not cycle.more_body:
            return 0
        headers = dict(cycle.scope["headers"])
        return self._whole or int(headers.get(b"content-length", 0))

    def _end_lent(self) -> None:
        if self._came == self._whole and self.parser is not None:
            self._whole = 0
            self.on_message_complete()

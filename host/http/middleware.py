"""What every request passes, from the outside in: ``Exchange``, the bound of its body, its token.

The log line says who, what, how it ended and how long it took: never a body, never a query string. Whatever
the application raises leaves as JSON with a sentence, never as a stack trace. A body is refused by its
declared length at once, else as soon as it is over the limit or stops coming; one that moves may take long.
"""

import hashlib
import hmac
import logging
import math
import re
from collections.abc import Callable, Set
from functools import partial
from http import HTTPStatus
from typing import Final

import anyio
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from host.http.auth import OPEN_PATHS, TokenBook, failure
from host.http.bodies import CAME, LARGE, LARGEST, RELEASE, SMALL, error_headers, error_response
from host.http.callers import Caller, SaidNames, operator
from host.http.openai.answers import PREFIX, openai_error
from host.runs.admission import RateLimit, may_take
from host.telemetry import Metrics
from shared import errors
from shared.clock import monotonic_ms
from shared.ids import REQUEST, new_id
from shared.logging import request_id as request_id_var
from shared.principals import Actor
from shared.settings import Settings
from shared.store.contract import acting, asking

logger = logging.getLogger("picoclaw.http")
access_logger = logging.getLogger("picoclaw.access")
METHODS: Final = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE"})
ACCEPTED: Final = re.compile(rb"[A-Za-z0-9._-]{1,128}")


class Exchange:
    """A request and its answer: gives it an id, counts and logs it, and answers what the application raised.

    The id is the caller's ``X-Request-ID`` if that is a plain one. What isn't HTTP is closed: there are no
    WebSockets here. An answer that has begun to be sent can only be cut off.
    """

    def __init__(
        self, app: ASGIApp, *, version: str, commit: str, redact: Callable[[str], str], counts: Metrics
    ) -> None:
        self._app = app
        self._build = [(b"x-build-version", version.encode()), (b"x-build-commit", commit.encode())]
        self._redact = redact
        self._counts = counts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        # With this key the router raises what is wrong instead of answering in plain text.
        scope["app"] = self
        scope["request_id"] = request_id = _given(scope) or new_id(REQUEST)
        named = [*self._build, (b"x-request-id", request_id.encode())]
        started = monotonic_ms()
        status = size = 0
        said = SaidNames(scope, send)

        async def observe(message: Message) -> None:
            nonlocal status, size
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *named]
            else:
                size += len(message.get("body", b""))
            caller = scope.get("caller")
            await (send if caller is None or caller.principal.is_operator else said)(message)

        token = request_id_var.set(request_id)
        try:
            await self._app(scope, receive, observe)
        except Exception as error:
            known = _known(error, scope)
            if status:
                raise
            known.message = self._redact(known.message)
            await _answer(known, scope)(scope, receive, observe)
        finally:
            self._count(scope, status, size, monotonic_ms() - started)
            request_id_var.reset(token)

    def _count(self, scope: Scope, status: int, size: int, took_ms: float) -> None:
        # What callers invent doesn't become a label.
        method = scope["method"] if scope["method"] in METHODS else "other"
        self._counts.http_requests[method, str(status)] += 1
        self._counts.request_seconds.add(took_ms / 1000)
        client, caller = scope.get("client"), scope.get("caller")
        access_logger.log(
            # Machines ask for these every few seconds.
            logging.DEBUG if scope["path"] in OPEN_PATHS else logging.INFO,
            "request",
            extra={
                "method": scope["method"],
                "path": scope["path"],
                "status": status,
                "bytes": size,
                "duration_ms": round(took_ms, 2),
                "client": client[0] if client else None,
                # Whoever reaches the things of all principals is seen to have done it.
                "principal": caller.principal.id if caller else None,
                "token": caller.token_id if caller else None,
            },
        )


def _given(scope: Scope) -> str | None:
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            return value.decode() if ACCEPTED.fullmatch(value) else None
    return None


def _known(error: Exception, scope: Scope) -> errors.PicoError:
    if isinstance(error, errors.PicoError):
        return error
    if isinstance(error, HTTPException):
        if error.status_code == HTTPStatus.NOT_FOUND:
            return errors.NotFound("There is nothing at this path.")
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            allowed = (error.headers or {}).get("Allow", "")
            sentence = f"{scope['method']} is not possible here; possible: {allowed}."
            return errors.MethodNotAllowed(sentence, allowed=allowed)
    logger.exception("A request failed inside the host")
    return errors.PicoError("The request failed inside the host.")


def _answer(error: errors.PicoError, scope: Scope) -> Response:
    if scope["path"].startswith(PREFIX):
        return openai_error(error, error_headers(error))
    return error_response(error, scope["request_id"])


SILENCE_S: Final = 30.0
"""How long a body may stand still."""

BODY_LIMIT: Final = SMALL
"""Bytes a request body may have (http-api: "Errors")."""
BODY_LIMITS: Final = {
    "/mcp": 4 * 1024 * 1024,  # an MCP message, as on the tool server's own wire
    **dict.fromkeys(LARGE, LARGEST),
}
MOST_LARGE: Final = 8
"""Bodies above ``BODY_LIMIT`` that may be on their way at once, where there is a limit above; of a user as
many as are left to others."""

STREAMED: Final = {"PUT": re.compile(r"/chat/[^/]+/files/.+"), "POST": re.compile(r"/chat/[^/]+/files")}
"""What takes files, which these routes bound themselves as the bytes come."""


class BodyLimit:
    """Bounds request bodies, at some paths to their own size; raises TooLarge, BodyTimeout."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._large: dict[int, str] = {}
        """By their scopes, whose they are."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        streamed, declared = STREAMED.get(scope["method"]), 0
        limit: float = BODY_LIMITS.get(scope["path"], BODY_LIMIT)
        if streamed is not None and streamed.fullmatch(scope["path"]):
            limit = math.inf
        for name, value in scope["headers"]:
            if name == b"content-length" and value.isdigit():
                declared = int(value)
        if declared > limit:
            raise _too_large(limit)
        received, whole = 0, False
        # Only who has sent a good token reads a body, so nobody else takes one of the few places.
        if limit == LARGEST:
            scope[RELEASE] = partial(self._large.pop, id(scope), None)

        async def bounded() -> Message:
            nonlocal received, whole
            if limit == LARGEST and max(declared, received) > BODY_LIMIT and not whole:
                self._hold(scope)
            message = await (receive() if whole or CAME in scope else _in_time(receive))
            received += len(message.get("body", b""))
            if received > limit:
                raise _too_large(limit)
            whole = not message.get("more_body", False)
            return message

        try:
            await self._app(scope, bounded, send)
        finally:
            self._large.pop(id(scope), None)

    def _hold(self, scope: Scope) -> None:
        if id(scope) in self._large:
            return
        principal, free = scope["caller"].principal, MOST_LARGE - len(self._large)
        own = list(self._large.values()).count(principal.id)
        if not may_take(principal.id, own, free):
            sentence = f"{len(self._large)} bodies above {BODY_LIMIT} bytes come at once; try again."
            raise errors.Unavailable(sentence, code="busy", retry_after=1)
        self._large[id(scope)] = principal.id


async def _in_time(receive: Receive) -> Message:
    with anyio.move_on_after(SILENCE_S):
        return await receive()
    raise errors.BodyTimeout(f"body: did not go on for {SILENCE_S:g} s")


def _too_large(limit: float) -> errors.TooLarge:
    return errors.TooLarge(f"The body is larger than {limit} bytes.")


DOOR: Final = b"x-picoclaw-door"
OWN_DOORS: Final = ("console", "cli")
"""Programs of this project say which one they are."""


class Bearer:
    """Lets a request through that carries a token, as ``scope["caller"]``.

    Raises Unauthorized, TooManyRequests. The router checks what the caller may ask for. Requests are limited
    for each token, failures for each address: only those who fail are slowed, whoever calls from the same
    address with a good token is not.
    """

    def __init__(self, app: ASGIApp, settings: Settings, book: TokenBook, open_paths: Set[str]) -> None:
        accepted = (settings.api_token, settings.api_token_previous)
        tokens = [secret.get_secret_value() for secret in accepted if secret is not None]
        rates = settings.rate_limits
        self._app = app
        self._book = book
        self._open_paths = open_paths
        self._operator = operator(settings.main_conversation_id)
        self._digests = [hashlib.sha256(token.encode()).digest() for token in tokens if token]
        self._failures = RateLimit(rates.failed_auth_per_minute)
        self._requests = RateLimit(rates.requests_per_minute)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["open"] = scope["path"] in self._open_paths
        if not scope["open"]:
            scope["caller"] = await self._caller(scope)
        elif scope["path"] in OPEN_PATHS:
            scope["operator"] = await self._is_operator(scope)
        caller: Caller | None = scope.get("caller")
        if caller is None:
            await self._app(scope, receive, send)
            return
        client, said = scope.get("client") or (None,), dict(scope["headers"]).get(DOOR, b"").decode("latin-1")
        door = "mcp" if scope["path"] == "/mcp" else said if said in OWN_DOORS else "http"
        asking.set(caller.principal.id)
        actor = acting.set(Actor(caller.principal.id, caller.token_id, door, client[0]))
        try:
            if caller.token_id is None:
                await self._app(scope, receive, send)
            else:
                await self._book.requests.serve(self._app, scope, receive, send)
        finally:
            acting.reset(actor)

    async def _is_operator(self, scope: Scope) -> bool:
        """Return whether the API token is sent where none is needed; whoever guesses learns nothing here."""
        token, address = _token(scope), _address(scope)
        if token is None or self._failures.retry_after(address) is not None:
            return False
        digest = hashlib.sha256(token).digest()
        if self._accepts(digest):
            return True
        if not await self._is_somebodys(token, digest):
            self._failures.count(address)
        return False

    async def _is_somebodys(self, token: bytes, digest: bytes) -> bool:
        """Return whether a token that isn't the operator's is another's, who guesses nothing."""
        try:
            return await self._book.bearer(token, digest) is not None
        except errors.Suspended:
            return True
        except errors.PicoError:
            return False

    def _accepts(self, digest: bytes) -> bool:
        accepted = False
        for known in self._digests:
            # Every digest is compared, whichever matches: the time tells nothing.
            accepted |= hmac.compare_digest(digest, known)
        return accepted

    async def _caller(self, scope: Scope) -> Caller:
        if not self._digests:
            raise errors.Misconfigured("API_TOKEN is not configured")
        token = _token(scope)
        digest = hashlib.sha256(token or b"").digest()
        accepted = self._accepts(digest)
        if token is None:
            # Nobody guesses tokens by sending none: programs ask in this way what they have to send.
            raise errors.Unauthorized("Unauthorized")
        caller = self._operator if accepted else await self._book.bearer(token, digest)
        if caller is None:
            raise failure(self._failures, _address(scope))
        # A principal makes itself as many tokens as it likes.
        whose = digest.hex() if caller.principal.is_operator else caller.principal.id
        self._requests.spend(whose, "Too many requests with this token in a minute.")
        rates = caller.principal.terms.rate_limits
        if rates is not None:
            most = rates.get("requests_per_minute") or 0
            said = f"This principal's requests_per_minute are {most}."
            self._requests.spend(("principal", caller.principal.id), said, most)
        return caller


def _address(scope: Scope) -> str:
    client = scope.get("client")
    return client[0] if client else ""


def _token(scope: Scope) -> bytes | None:
    values = [value for name, value in scope["headers"] if name == b"authorization"]
    if len(values) != 1:
        return None
    scheme, _, token = values[0].partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" else None

"""Who may call: a bearer token, compared by digest in constant time, before anything is parsed."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Awaitable, Callable, Sequence, Set
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from host.callers import Caller
from host.rates import RateLimit
from shared.errors import Forbidden, Misconfigured, PicoError, TooManyRequests, Unauthorized

OPEN_PATHS: Final = frozenset({"/health", "/ready"})
"""What anyone may ask: whether the host lives. Compared with ``scope["path"]``, as the router does."""

BOUND_PATHS: Final = frozenset({"/mcp"})
"""Where a token that is bound to a conversation counts."""

MOST_FAILURES: Final = 20

Bearer = Callable[[bytes, bytes], Awaitable[Caller | None]]
"""Tells whose a token is, by its text and its SHA-256."""


class BearerMiddleware:
    """Lets a request through that carries a token, as ``scope["caller"]``.

    Raises Unauthorized, TooManyRequests, and Forbidden for a conversation's token outside ``BOUND_PATHS``.
    Requests are limited for each token, failures for each address: only those who fail are slowed, whoever
    calls from the same address with a good token is not. 0 switches a limit off.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        tokens: Sequence[str],
        owner: Caller,
        bearer: Bearer,
        failures_per_minute: int = MOST_FAILURES,
        requests_per_minute: int = 0,
        open_paths: Set[str] = OPEN_PATHS,
    ) -> None:
        self._app = app
        self._open_paths = open_paths
        self._owner = owner
        self._bearer = bearer
        self._digests = [hashlib.sha256(token.encode()).digest() for token in tokens if token]
        self._failures = RateLimit(failures_per_minute)
        self._requests = RateLimit(requests_per_minute)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in self._open_paths:
            scope["caller"] = await self._caller(scope)
        await self._app(scope, receive, send)

    async def _caller(self, scope: Scope) -> Caller:
        if not self._digests:
            raise Misconfigured("API_TOKEN is not configured")
        token = _token(scope)
        digest = hashlib.sha256(token or b"").digest()
        caller = None if token is None else await self._known(token, digest)
        if caller is None:
            client = scope.get("client")
            raise failure(self._failures, client[0] if client else "")
        self._count(digest.hex())
        if caller.token_id is not None and scope["path"] not in BOUND_PATHS:
            raise Forbidden("This token is for a conversation's tools at /mcp; here it takes API_TOKEN.")
        return caller

    async def _known(self, token: bytes, digest: bytes) -> Caller | None:
        return self._owner if self._accepted(digest) else await self._bearer(token, digest)

    def _count(self, key: str) -> None:
        wait = self._requests.retry_after(key)
        if wait is not None:
            raise TooManyRequests("Too many requests with this token in a minute.", retry_after=wait)
        self._requests.count(key)

    def _accepted(self, digest: bytes) -> bool:
        accepted = False
        for known in self._digests:
            # Every digest is compared, whichever matches: the time tells nothing.
            accepted |= hmac.compare_digest(digest, known)
        return accepted


def failure(failures: RateLimit, address: str) -> PicoError:
    """Count a failed authentication and return its answer: 401, or 429 for one too many."""
    wait = failures.retry_after(address)
    if wait is not None:
        return TooManyRequests("Too many failed authentications from this address.", retry_after=wait)
    failures.count(address)
    return Unauthorized("Unauthorized")


def _token(scope: Scope) -> bytes | None:
    values = [value for name, value in scope["headers"] if name == b"authorization"]
    if len(values) != 1:
        return None
    scheme, _, token = values[0].partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" else None

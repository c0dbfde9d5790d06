"""Who may call: a bearer token, compared by digest in constant time, before anything is parsed."""

from __future__ import annotations

import hashlib
import hmac
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from shared.clock import monotonic_ms
from shared.errors import Misconfigured, TooManyRequests, Unauthorized

OPEN_PATHS: Final = frozenset({"/health", "/ready"})
"""What anyone may ask: whether the host lives. Compared with ``scope["path"]``, as the router does."""

MOST_FAILURES: Final = 20
WINDOW_MS: Final = 60_000.0
MOST_ADDRESSES: Final = 10_000
"""Addresses whose failures are remembered; beyond that the one that failed longest ago is forgotten."""


class FailureLimit:
    """Counts failed authentications per address in the last minute."""

    def __init__(self, clock: Callable[[], float] = monotonic_ms) -> None:
        self._clock = clock
        self._failures: OrderedDict[str, deque[float]] = OrderedDict()

    def retry_after(self, address: str) -> int | None:
        """Return the seconds the address has to wait, None if it may try."""
        failures = self._recent(address)
        if len(failures) <= MOST_FAILURES:
            return None
        return max(1, round((failures[-MOST_FAILURES] + WINDOW_MS - self._clock()) / 1000))

    def failed(self, address: str) -> None:
        """Count a failure."""
        failures = self._recent(address)
        # One more than the limit is all that is ever needed, so an attack costs no memory.
        failures.append(self._clock())
        while len(failures) > MOST_FAILURES + 1:
            failures.popleft()
        self._failures[address] = failures
        self._failures.move_to_end(address)
        if len(self._failures) > MOST_ADDRESSES:
            self._failures.popitem(last=False)

    def _recent(self, address: str) -> deque[float]:
        failures = self._failures.get(address, deque())
        while failures and failures[0] < self._clock() - WINDOW_MS:
            failures.popleft()
        return failures


class BearerMiddleware:
    """Lets a request through that carries one of the tokens; raises Unauthorized, TooManyRequests."""

    def __init__(self, app: ASGIApp, *, tokens: Sequence[str], limit: FailureLimit | None = None) -> None:
        self._app = app
        self._digests = [hashlib.sha256(token.encode()).digest() for token in tokens if token]
        self._limit = limit or FailureLimit()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            self._check(scope)
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        if not self._digests:
            raise Misconfigured("API_TOKEN is not configured")
        client = scope.get("client")
        address = client[0] if client else ""
        wait = self._limit.retry_after(address)
        if wait is not None:
            raise TooManyRequests("Too many failed authentications from this address.", retry_after=wait)
        if not self._accepted(_token(scope)):
            self._limit.failed(address)
            raise Unauthorized("Unauthorized")

    def _accepted(self, token: bytes | None) -> bool:
        if token is None:
            return False
        digest = hashlib.sha256(token).digest()
        accepted = False
        for known in self._digests:
            # Every digest is compared, whichever matches: the time tells nothing.
            accepted |= hmac.compare_digest(digest, known)
        return accepted


def _token(scope: Scope) -> bytes | None:
    values = [value for name, value in scope["headers"] if name == b"authorization"]
    if len(values) != 1:
        return None
    scheme, _, token = values[0].partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" else None

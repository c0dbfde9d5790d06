"""Requests whose token ends while they go on: they end within a second, and their streams say why.

The run that such a request began goes on: it is its principal's.
"""

from __future__ import annotations

import logging
from typing import Final

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from host.http.callers import VERBATIM, Caller
from host.http.openai.answers import PREFIX, as_event, error_body
from host.http.routing import ANY, Operation
from host.runs.principals import PrincipalCache
from shared import jsons
from shared.clock import now_ms
from shared.errors import PicoError, Unauthorized
from shared.principals import SIGNED, Principal, PrincipalStatus
from shared.store.store import Store

logger = logging.getLogger("picoclaw.auth")

EVERY_S: Final = 0.5
TOKEN_ENDED: Final = "The token has ended."  # noqa: S105 - a sentence


class OpenRequests:
    """The requests in flight whose callers' right may end; one look serves all of a host."""

    def __init__(self, store: Store, principals: PrincipalCache) -> None:
        self._store = store
        self.principals = principals
        self.used = set[str]()
        """Tokens of which it isn't stored yet that they were used: one transaction serves many."""
        self._open: dict[anyio.CancelScope, Scope] = {}

    async def serve(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request as long as its caller may ask for it; raises Unauthorized ``token_ended``."""
        started: Message | None = None

        async def observe(message: Message) -> None:
            nonlocal started
            started = started or message
            await send(message)

        with anyio.CancelScope() as ending:
            self._open[ending] = scope
            try:
                await app(scope, receive, observe)
            finally:
                del self._open[ending]
        if not ending.cancelled_caught:
            return
        ended = Unauthorized(TOKEN_ENDED, code="token_ended")
        if started is None:
            raise ended
        if VERBATIM in scope:
            return  # a file ends short of its length
        last = _last_event(ended, scope) if _is_stream(started) else b""
        await send({"type": "http.response.body", "body": last, "more_body": False})

    async def watch(self) -> None:
        """End what has to end, twice a second and when something changed here."""
        while True:
            await self.principals.changed(EVERY_S)
            try:
                await self.store_used()
                if self._open:
                    await self._look()
            except PicoError as error:
                logger.warning("Whether tokens have ended can't be seen: %s", error.message)

    async def store_used(self) -> None:
        """Store which tokens were used."""
        if used := list(self.used):
            self.used.clear()
            await self._store.tokens.touched(used, now_ms())

    async def _look(self) -> None:
        callers: list[Caller] = [scope["caller"] for scope in self._open.values()]
        tokens = await self._store.tokens.living([caller.token_id or "" for caller in callers], now_ms())
        principals = await self.principals.some([caller.principal.id for caller in callers])
        for ending, scope in list(self._open.items()):
            caller: Caller = scope["caller"]
            needed: Operation | None = scope.get("operation")
            if not (_lives(caller, tokens) and _lets(principals.get(caller.principal.id), needed)):
                ending.cancel()


def _lives(caller: Caller, tokens: frozenset[str]) -> bool:
    if caller.token_id == SIGNED:
        return (caller.expires_at or 0) > now_ms()
    return caller.token_id in tokens


def _lets(principal: Principal | None, asked: Operation | None) -> bool:
    """Return whether the principal is active, and has what is asked for."""
    if principal is None or principal.status is not PrincipalStatus.ACTIVE:
        return False
    return asked is None or not asked.scopes.isdisjoint((*principal.terms.scopes, ANY))


def _is_stream(started: Message) -> bool:
    kinds = [value for name, value in started.get("headers", ()) if name == b"content-type"]
    return any(kind.startswith(b"text/event-stream") for kind in kinds)


def _last_event(ended: PicoError, scope: Scope) -> bytes:
    if scope["path"].startswith(PREFIX):
        return as_event(error_body(ended))
    return b"event: error\ndata: %b\n\n" % jsons.dump_bytes({"error": ended.message, "code": ended.code})

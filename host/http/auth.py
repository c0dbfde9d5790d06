"""Who may call and on whose behalf: the operator by the API token, others by a stored or a signed token.

A request whose token ends while it goes on ends within a second, and its stream says why.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from host.http.bodies import id_by
from host.http.callers import VERBATIM, Caller
from host.http.openai.answers import PREFIX, as_event, error_body
from host.http.routing import ANY, Operation
from host.runs.admission import RateLimit, may_take
from host.runs.principals import PrincipalCache
from shared import errors, jsons
from shared.clock import now_ms
from shared.ids import TOKEN, Token, new_id
from shared.principals import OPERATOR, SIGNED, Principal, PrincipalStatus, stored_name
from shared.store.sql.tokens import MINUTE_MS
from shared.store.store import Store
from shared.values import Idempotency

if TYPE_CHECKING:
    from host.http.signed_tokens import SignedTokens

TOKEN_PREFIX: Final = b"pico_"
"""What a stored token begins with: nothing else is worth a look into the store."""
TOKEN_BYTES: Final = 32
"""Random bytes of a token: too many to guess, so a plain SHA-256 keeps it (NIST SP 800-63B, 5.1.2.2)."""


class TokenBook:
    """Makes tokens, and tells whose a token is."""

    def __init__(
        self, store: Store, main_conversation_id: str, signed: SignedTokens | None, requests: OpenRequests
    ) -> None:
        self.requests = requests
        self._store = store
        self._main = main_conversation_id
        self._signed = signed

    def main_of(self, principal: Principal) -> str:
        """Return the id of a principal's main conversation."""
        return stored_name(principal.id, self._main)

    async def issue(self, wanted: Token, key: Idempotency | None) -> tuple[Token, str]:
        """Make a token, and the conversation if there is none; returns it with the only sight of its text.

        ``wanted`` has no id yet, and a conversation as its principal calls it. Raises InvalidInput for that
        of a task run, Conflict for a repeated request, NoConversation for somebody else's, Suspended.
        """
        token_id = await id_for(key, TOKEN, self._store)
        said, whose = wanted.conversation_id, wanted.principal_id
        conversation = await self._store.conversations.reach(whose, said)
        if conversation is None:
            stored, trusted = stored_name(whose, said), wanted.is_main and whose != OPERATOR
            conversation = await self._store.conversations.ensure(
                stored, wanted.created_at, trusted=trusted, principal_id=whose
            )
        if conversation.principal_id != whose:
            raise errors.NoConversation(said)
        if conversation.temporary:
            raise errors.InvalidInput("conversation_id: is a task run's own and will be gone")
        text = f"{TOKEN_PREFIX.decode()}{secrets.token_urlsafe(TOKEN_BYTES)}"
        token = replace(wanted, id=token_id, conversation_id=conversation.id)
        try:
            await self._store.tokens.add(token, hashlib.sha256(text.encode()).digest())
        except errors.Duplicate:
            raise already_made(token_id) from None
        if key is not None:
            await self._store.runs.keep_answer(key, token_id, 201, {}, token.created_at)
        await self._store.durable()
        return token, text

    async def bearer(self, token: bytes, digest: bytes) -> Caller | None:
        """Return who carries this token (``digest``: its SHA-256); None if nobody does, or not any more.

        Raises Suspended.
        """
        if not token.startswith(TOKEN_PREFIX):
            return None if self._signed is None else await self._signed_in(self._signed, token)
        found = await self._store.tokens.find(digest, now_ms())
        if found is None:
            return None
        acts_for, principal = found
        _check_active(principal)
        self.requests.principals.keep(principal)
        if now_ms() - (acts_for.last_used_at or 0) >= MINUTE_MS:
            self.requests.used.add(acts_for.id)
        scopes = frozenset(acts_for.scopes) & frozenset(principal.terms.scopes)
        bound = (acts_for.conversation_id, acts_for.is_main, acts_for.id)
        return Caller(principal, *bound, scopes, acts_for.expires_at, digest)

    async def _signed_in(self, signed: SignedTokens, token: bytes) -> Caller | None:
        found = await signed.principal(token)
        if found is None:
            return None
        principal, claims = found
        _check_active(principal)
        own = frozenset(principal.terms.scopes)
        scopes = own if claims.scopes is None else own & claims.scopes
        return Caller(principal, self.main_of(principal), True, SIGNED, scopes, claims.expires_at)

    async def check(self, caller: Caller) -> None:
        """Raise Unauthorized, Suspended when a caller's right has ended since its request began."""
        if caller.token_id is None:
            return
        if caller.token_id == SIGNED:
            principal = await self._store.principals.get(caller.principal.id)
            ended = principal is None or (caller.expires_at or 0) <= now_ms()
        else:
            found = await self._store.tokens.find(caller.digest, now_ms())
            principal, ended = (found[1], False) if found else (None, True)
        if ended or principal is None:
            raise errors.Unauthorized("Unauthorized")
        _check_active(principal)

    async def revoke(self, token_id: str, principal_id: str | None = None) -> bool:
        """End a token (only a principal's) at once; False if there is none."""
        gone = await self._store.tokens.revoke(token_id, principal_id)
        self.requests.principals.look()
        await self._store.durable()
        return gone


def _check_active(principal: Principal) -> None:
    if principal.status is not PrincipalStatus.ACTIVE:
        raise errors.Suspended(principal.id)


async def id_for(key: Idempotency | None, kind: str, store: Store) -> str:
    """Return the id of what is shown once: for a key always the same, so that it can't make two.

    Raises Conflict for a repeated request.
    """
    if key is None:
        return new_id(kind)
    kept = await store.runs.keyed(key, now_ms())
    if kept is not None:
        raise already_made(kept.subject)
    return id_by(key, kind)


def already_made(made_id: str) -> errors.Conflict:
    """Return the refusal of a repeated request, whose answer had a secret."""
    return errors.Conflict(
        f"Idempotency-Key: has made {made_id} already; its secret is not kept", code="already_made"
    )


OPEN_PATHS: Final = frozenset({"/health", "/ready"})
"""What anyone may ask: whether the host lives. Compared with ``scope["path"]``, as the router does."""


def failure(failures: RateLimit, address: str) -> errors.Unauthorized:
    """Count a failed authentication and return its answer; raises TooManyRequests for one too many."""
    failures.spend(address, "Too many failed authentications from this address.")
    return errors.Unauthorized("Unauthorized")


logger = logging.getLogger("picoclaw.auth")

EVERY_S: Final = 0.5
TOKEN_ENDED: Final = "The token has ended."  # noqa: S105 - a sentence


class OpenRequests:
    """The requests in flight whose callers' right may end; one look serves all of a host."""

    def __init__(self, store: Store, principals: PrincipalCache, most: int) -> None:
        self._store = store
        self.principals = principals
        self._most = most
        self._of = Counter[str]()
        self.used = set[str]()
        """Tokens of which it isn't stored yet that they were used: one transaction serves many."""
        self._open: dict[anyio.CancelScope, Scope] = {}

    async def serve(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request as long as its caller may ask for it; raises Unauthorized ``token_ended``.

        Of the host's connections a user has as many as are left to others; raises Unavailable for one more.
        """
        started: Message | None = None
        principal: Principal = scope["caller"].principal
        own = self._of[principal.id]
        if not may_take(principal.id, own, self._most - len(self._open)):
            sentence = f"This principal has {own} requests open already; end some of them."
            raise errors.Unavailable(sentence, code="busy", retry_after=1)

        async def observe(message: Message) -> None:
            nonlocal started
            started = started or message
            await send(message)

        with anyio.CancelScope() as ending:
            self._open[ending] = scope
            self._of[principal.id] += 1
            try:
                await app(scope, receive, observe)
            finally:
                del self._open[ending]
                self._of[principal.id] -= 1
        if not ending.cancelled_caught:
            return
        ended = errors.Unauthorized(TOKEN_ENDED, code="token_ended")
        if started is None:
            raise ended
        if VERBATIM in scope:
            return  # a file ends short of its length
        last = last_event(ended, scope) if _is_stream(started) else b""
        await send({"type": "http.response.body", "body": last, "more_body": False})

    async def watch(self) -> None:
        """End what has to end, twice a second and when something changed here."""
        while True:
            await self.principals.changed(EVERY_S)
            try:
                await self.store_used()
                if self._open:
                    await self._look()
            except errors.PicoError as error:
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


def last_event(ended: errors.PicoError, scope: Scope) -> bytes:
    """Return the event with which a stream ends that can't go on."""
    if scope["path"].startswith(PREFIX):
        return as_event(error_body(ended))
    return b"event: error\ndata: %b\n\n" % jsons.dump_bytes({"error": ended.message, "code": ended.code})

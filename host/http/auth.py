"""Who may call and on whose behalf: the operator by the API token, others by a stored or a signed token.

Tokens are compared by digest in constant time, before anything of a request is parsed.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from uuid import NAMESPACE_URL, uuid5

from starlette.requests import Request

from host.http.routing import ANY, OF_PRINCIPAL, Operation
from host.runs.admission import RateLimit
from host.runs.principals import THE_OPERATOR
from shared.clock import now_ms
from shared.errors import (
    Conflict,
    Duplicate,
    Forbidden,
    InvalidInput,
    NoConversation,
    Suspended,
    Unauthorized,
)
from shared.ids import TOKEN, Token, new_id
from shared.principals import Principal, PrincipalStatus, Reach, stored_name
from shared.store.store import Store
from shared.values import Idempotency

if TYPE_CHECKING:
    from host.http.ending import OpenRequests
    from host.http.signed_tokens import SignedTokens

TOKEN_PREFIX: Final = b"pico_"
"""What a stored token begins with: nothing else is worth a look into the store."""
TOKEN_BYTES: Final = 32
"""Random bytes of a token: too many to guess, so a plain SHA-256 keeps it (NIST SP 800-63B, 5.1.2.2)."""
SIGNED: Final = "signed"
"""Stands for the id of a signed token: renewed, it is the same caller's."""
BOUND: Final = "This token is for a conversation's tools at /mcp; here it takes API_TOKEN."


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls. ``token_id`` None: the bearer of the API token, who may do everything.

    ``conversation_id`` is whom it acts for at /mcp, in the main role if ``is_main``; other tokens count
    nowhere else.
    """

    principal: Principal = field(compare=False)
    conversation_id: str
    is_main: bool
    token_id: str | None = None
    scopes: frozenset[str] = field(default=frozenset(), compare=False)
    expires_at: int | None = field(default=None, compare=False)
    digest: bytes = field(default=b"", repr=False)
    """SHA-256 of a stored token."""

    @property
    def within(self) -> str | None:
        """The principal whose things alone the caller reaches by their ids; None: it reaches any."""
        return None if self.token_id is None else self.principal.id

    @property
    def reach(self) -> Reach:
        """What the caller reaches of tasks."""
        return Reach(None, self.within)

    @property
    def prefix(self) -> bytes:
        """What stands before names that the principal chose where they are stored."""
        return self.stored("").encode()

    def listed(self, request: Request) -> str | None:
        """Return whose things a list has: the caller's, or as the operator wants; None: everybody's.

        Raises Forbidden.
        """
        wanted = request.query_params.get(OF_PRINCIPAL.name, self.principal.id)
        if wanted != self.principal.id and self.token_id is not None:
            raise Forbidden(f"{OF_PRINCIPAL.name}: the things of others take API_TOKEN.")
        return None if wanted == "*" else wanted

    def stored(self, said: str) -> str:
        """Return what a name that the caller chooses is stored under."""
        return stored_name(self.principal.id, said)

    def require(self, declared: Operation) -> None:
        """Raise Forbidden unless what is declared is the caller's to ask for."""
        if self.token_id is None or declared.scope == ANY:
            return
        if not (self.is_main or declared.scope == "mcp"):
            raise Forbidden(BOUND)
        what = f"{declared.method} {declared.path}"
        if declared.scope is None:
            raise Forbidden(f"{what} is the operator's alone: it takes API_TOKEN.")
        if self.scopes.isdisjoint(declared.scopes):
            wanted = " or ".join(f'"{scope}"' for scope in sorted(declared.scopes))
            raise Forbidden(f"{what} needs the scope {wanted}")

    def may(self, scope: str) -> bool:
        """Return whether the caller has a scope."""
        return self.token_id is None or scope in self.scopes

    def allow(self, what: str, scopes: Iterable[str]) -> None:
        """Raise Forbidden unless the caller has all the scopes that something needs."""
        for scope in scopes:
            if not self.may(scope):
                raise Forbidden(f'{what} needs the scope "{scope}"')


def caller_of(request: Request) -> Caller:
    """Return who makes a request that needs a token."""
    caller: Caller = request.scope["caller"]
    return caller


@dataclass(frozen=True, slots=True)
class Wish:
    """A token to be made: for which conversation of whom, for what, until when."""

    principal: Principal
    conversation_id: str
    is_main: bool
    scopes: tuple[str, ...]
    name: str = ""
    expires_at: int | None = None
    key: Idempotency | None = None


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

    async def issue(self, wish: Wish) -> tuple[Token, str]:
        """Make a token, and the conversation if there is none; returns it with the only sight of its text.

        Raises InvalidInput for the temporary conversation of a task run, Conflict for a repeated request,
        NoConversation for somebody else's, Suspended.
        """
        token_id = await self._new_id(wish)
        now, principal = now_ms(), wish.principal
        conversation = await self._store.conversations.reach(principal.id, wish.conversation_id)
        if conversation is None:
            name = stored_name(principal.id, wish.conversation_id)
            conversation = await self._store.conversations.ensure(
                name, now, trusted=wish.is_main and not principal.is_operator, principal_id=principal.id
            )
        if conversation.principal_id != principal.id:
            raise NoConversation(wish.conversation_id)
        if conversation.temporary:
            raise InvalidInput("conversation_id: is a task run's own and will be gone")
        text = f"{TOKEN_PREFIX.decode()}{secrets.token_urlsafe(TOKEN_BYTES)}"
        bound = (conversation.id, wish.is_main, now, wish.expires_at)
        token = Token(token_id, *bound, principal.id, wish.name, wish.scopes)
        try:
            await self._store.tokens.add(token, hashlib.sha256(text.encode()).digest())
        except Duplicate:
            raise _already_made(token_id) from None
        if wish.key is not None:
            await self._store.runs.keep_answer(wish.key, token_id, 201, {}, now)
        await self._store.durable()
        return token, text

    async def _new_id(self, wish: Wish) -> str:
        """Return the id of a new token: for a key always the same, so that it can't make two."""
        key = wish.key
        if key is None:
            return new_id(TOKEN)
        kept = await self._store.runs.keyed(key, now_ms())
        if kept is not None:
            raise _already_made(kept.subject)
        return f"{TOKEN}-{uuid5(NAMESPACE_URL, chr(10).join((key.route, key.key, key.digest)))}"

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
        await self._store.tokens.touched(acts_for, now_ms())
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
            raise Unauthorized("Unauthorized")
        _check_active(principal)

    async def revoke(self, token_id: str, principal_id: str | None = None) -> bool:
        """End a token (only a principal's) at once; False if there is none."""
        gone = await self._store.tokens.revoke(token_id, principal_id)
        self.requests.look()
        await self._store.durable()
        return gone


def _check_active(principal: Principal) -> None:
    if principal.status is not PrincipalStatus.ACTIVE:
        raise Suspended(principal.id)


def _already_made(token_id: str) -> Conflict:
    return Conflict(
        f"Idempotency-Key: has made {token_id} already; its text is not kept", code="already_made"
    )


OPEN_PATHS: Final = frozenset({"/health", "/ready"})
"""What anyone may ask: whether the host lives. Compared with ``scope["path"]``, as the router does."""


def operator(main_conversation_id: str) -> Caller:
    """Return the bearer of the API token."""
    return Caller(THE_OPERATOR, main_conversation_id, is_main=True)


def failure(failures: RateLimit, address: str) -> Unauthorized:
    """Count a failed authentication and return its answer; raises TooManyRequests for one too many."""
    failures.spend(address, "Too many failed authentications from this address.")
    return Unauthorized("Unauthorized")

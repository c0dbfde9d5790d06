"""Who may call and acts for whom: the main conversation by the API token, or the one a token is bound to.

Tokens are compared by digest in constant time, before anything of a request is parsed.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Set
from dataclasses import dataclass, field
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from host.runs.admission import RateLimit
from shared.clock import now_ms
from shared.errors import Forbidden, InvalidInput, Misconfigured, Unauthorized
from shared.ids import TOKEN, Token, new_id
from shared.settings import Settings
from shared.store.store import Store

TOKEN_PREFIX: Final = b"pico_"
"""What a conversation's token begins with: nothing else is worth a look into the store."""
TOKEN_BYTES: Final = 32
"""Random bytes of a token: too many to guess, so a plain SHA-256 keeps it (NIST SP 800-63B, 5.1.2.2)."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls. ``token_id`` None: the bearer of the API token, who may do everything."""

    conversation_id: str
    is_main: bool
    token_id: str | None = None
    digest: bytes = field(default=b"", repr=False)
    """SHA-256 of the token with this id."""


class TokenBook:
    """Makes tokens for conversations, and tells whose a token is."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def issue(self, conversation_id: str, *, is_main: bool, life_ms: int | None) -> tuple[Token, str]:
        """Make a token, and the conversation if there is none; returns it with the only sight of its text.

        Raises InvalidInput for the temporary conversation of a task run.
        """
        now = now_ms()
        conversation = await self._store.conversations.ensure(conversation_id, now, trusted=False)
        if conversation.temporary:
            raise InvalidInput("conversation_id: is a task run's own and will be gone")
        text = f"{TOKEN_PREFIX.decode()}{secrets.token_urlsafe(TOKEN_BYTES)}"
        expires_at = None if life_ms is None else now + life_ms
        token = Token(new_id(TOKEN), conversation_id, is_main, now, expires_at)
        await self._store.tokens.add(token, hashlib.sha256(text.encode()).digest())
        await self._store.durable()
        return token, text

    async def bearer(self, token: bytes, digest: bytes) -> Caller | None:
        """Return who carries this token (``digest``: its SHA-256); None if nobody does, or not any more."""
        if not token.startswith(TOKEN_PREFIX):
            return None
        found = await self._store.tokens.find(digest, now_ms())
        return None if found is None else Caller(found.conversation_id, found.is_main, found.id, digest)

    async def check(self, caller: Caller) -> None:
        """Raise Unauthorized when a caller's token has ended since its request began."""
        if caller.token_id is None:
            return
        if await self._store.tokens.find(caller.digest, now_ms()) is None:
            raise Unauthorized("Unauthorized")

    async def revoke(self, token_id: str) -> bool:
        """End a token at once; False if there is none."""
        gone = await self._store.tokens.revoke(token_id)
        await self._store.durable()
        return gone


OPEN_PATHS: Final = frozenset({"/health", "/ready"})
"""What anyone may ask: whether the host lives. Compared with ``scope["path"]``, as the router does."""

BOUND_PATHS: Final = frozenset({"/mcp"})
"""Where a token that is bound to a conversation counts."""


class Bearer:
    """Lets a request through that carries a token, as ``scope["caller"]``.

    Raises Unauthorized, TooManyRequests, and Forbidden for a conversation's token outside ``BOUND_PATHS``.
    Requests are limited for each token, failures for each address: only those who fail are slowed, whoever
    calls from the same address with a good token is not.
    """

    def __init__(self, app: ASGIApp, settings: Settings, book: TokenBook, open_paths: Set[str]) -> None:
        accepted = (settings.api_token, settings.api_token_previous)
        tokens = [secret.get_secret_value() for secret in accepted if secret is not None]
        rates = settings.rate_limits
        self._app = app
        self._book = book
        self._open_paths = open_paths
        self._owner = Caller(settings.main_conversation_id, is_main=True)
        self._digests = [hashlib.sha256(token.encode()).digest() for token in tokens if token]
        self._failures = RateLimit(rates.failed_auth_per_minute)
        self._requests = RateLimit(rates.requests_per_minute)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] not in self._open_paths:
            scope["caller"] = await self._caller(scope)
        await self._app(scope, receive, send)

    async def _caller(self, scope: Scope) -> Caller:
        if not self._digests:
            raise Misconfigured("API_TOKEN is not configured")
        token = _token(scope)
        digest = hashlib.sha256(token or b"").digest()
        accepted = False
        for known in self._digests:
            # Every digest is compared, whichever matches: the time tells nothing.
            accepted |= hmac.compare_digest(digest, known)
        if token is None:
            # Nobody guesses tokens by sending none: programs ask in this way what they have to send.
            raise Unauthorized("Unauthorized")
        caller = self._owner if accepted else await self._book.bearer(token, digest)
        if caller is None:
            client = scope.get("client")
            raise failure(self._failures, client[0] if client else "")
        self._requests.spend(digest.hex(), "Too many requests with this token in a minute.")
        if caller.token_id is not None and scope["path"] not in BOUND_PATHS:
            raise Forbidden("This token is for a conversation's tools at /mcp; here it takes API_TOKEN.")
        return caller


def failure(failures: RateLimit, address: str) -> Unauthorized:
    """Count a failed authentication and return its answer; raises TooManyRequests for one too many."""
    failures.spend(address, "Too many failed authentications from this address.")
    return Unauthorized("Unauthorized")


def _token(scope: Scope) -> bytes | None:
    values = [value for name, value in scope["headers"] if name == b"authorization"]
    if len(values) != 1:
        return None
    scheme, _, token = values[0].partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" else None

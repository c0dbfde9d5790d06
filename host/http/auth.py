"""Who may call and acts for whom: the main conversation by the API token, or the one a token is bound to.

Tokens are compared by digest in constant time, before anything of a request is parsed.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, field
from typing import Final

from host.http.routing import ANY, Operation
from host.runs.admission import RateLimit
from shared.clock import now_ms
from shared.errors import Forbidden, InvalidInput, Suspended, Unauthorized
from shared.ids import TOKEN, Token, new_id
from shared.principals import PrincipalStatus
from shared.store.store import Store

TOKEN_PREFIX: Final = b"pico_"
"""What a conversation's token begins with: nothing else is worth a look into the store."""
TOKEN_BYTES: Final = 32
"""Random bytes of a token: too many to guess, so a plain SHA-256 keeps it (NIST SP 800-63B, 5.1.2.2)."""


MCP_ALONE: Final = frozenset({"mcp"})


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls. ``token_id`` None: the bearer of the API token, who may do everything."""

    conversation_id: str
    is_main: bool
    token_id: str | None = None
    digest: bytes = field(default=b"", repr=False)
    """SHA-256 of the token with this id."""
    scopes: frozenset[str] = frozenset()

    def require(self, declared: Operation) -> None:
        """Raise Forbidden unless what is declared is the caller's to ask for."""
        wanted = frozenset((declared.scope or "").split("|"))
        if self.token_id is None or ANY in wanted:
            return
        if not (self.is_main or "mcp" in wanted):
            raise Forbidden("This token is for a conversation's tools at /mcp; here it takes API_TOKEN.")
        if declared.scope is None:
            raise Forbidden(f"{declared.method} {declared.path} is the operator's alone: it takes API_TOKEN.")
        if not wanted & self.scopes:
            scopes = " or ".join(f'"{scope}"' for scope in sorted(wanted))
            raise Forbidden(f"{declared.method} {declared.path} needs the scope {scopes}")


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
        if found is None:
            return None
        acts_for, principal = found
        if principal.status is not PrincipalStatus.ACTIVE:
            raise Suspended(principal.id)
        return Caller(acts_for.conversation_id, acts_for.is_main, acts_for.id, digest, MCP_ALONE)

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


def failure(failures: RateLimit, address: str) -> Unauthorized:
    """Count a failed authentication and return its answer; raises TooManyRequests for one too many."""
    failures.spend(address, "Too many failed authentications from this address.")
    return Unauthorized("Unauthorized")

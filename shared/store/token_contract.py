"""The Store contract's parts for MCP: tokens of outside agents, and the tools of the operator's servers."""

from __future__ import annotations

from typing import Protocol

from shared.models import Page
from shared.tokens import Token


class Tokens(Protocol):
    """Credentials of outside agents, each bound to a conversation; only a digest of each is stored."""

    async def add(self, token: Token, digest: bytes) -> None:
        """Store a token by its SHA-256; raises NotFound (its conversation)."""
        ...

    async def find(self, digest: bytes, now: int) -> Token | None:
        """Return the token with this digest unless it is revoked, expired, or its conversation is deleted."""
        ...

    async def page(self, *, limit: int, cursor: str | None) -> Page[Token]:
        """Return tokens, expired ones too, in the order they were made."""
        ...

    async def revoke(self, token_id: str) -> bool:
        """Remove a token for good; False if there is none."""
        ...


class ToolPins(Protocol):
    """What the tools of the operator's MCP servers looked like when they were last seen, as digests."""

    async def swap(self, place: bytes, digest: bytes, now: int) -> bytes | None:
        """Keep a place's digest and return the one that was kept before, None for a new place."""
        ...

"""What MCP keeps: tokens of outside agents, and how the tools of the operator's servers looked."""

from __future__ import annotations

from typing import Final

from shared.errors import NoConversation
from shared.ids import Token
from shared.store import rows
from shared.store.contract import Missing, Tx
from shared.store.rows import Noun
from shared.values import Page

to_token: Final = rows.reader(Token, is_main=bool)

COLUMNS: Final = ("id", "digest", "conversation_id", "is_main", "created_at", "expires_at")


class Tokens(Noun):
    """Credentials of outside agents, each bound to a conversation; only a digest of each is stored."""

    async def add(self, token: Token, digest: bytes) -> None:
        """Store a token by its SHA-256; raises NotFound (its conversation)."""
        bound = (token.conversation_id, int(token.is_main))
        values = (token.id, digest, *bound, token.created_at, token.expires_at)
        try:
            await self._change(rows.insertion("tokens", COLUMNS), *values)
        except Missing:
            raise NoConversation(token.conversation_id) from None

    async def find(self, digest: bytes, now: int) -> Token | None:
        """Return the token with this digest unless it is revoked, expired, or its conversation is deleted."""
        return await self._one(
            to_token,
            "SELECT * FROM tokens WHERE digest = $1 AND (expires_at IS NULL OR expires_at > $2)",
            digest,
            now,
        )

    async def page(self, *, limit: int, cursor: str | None) -> Page[Token]:
        """Return tokens, expired ones too, in the order they were made."""
        (after,) = rows.decode_cursor(cursor, int) or [0]
        return await self._page(
            to_token,
            ("number",),
            "SELECT * FROM tokens WHERE number > $2 ORDER BY number LIMIT $1",
            limit,
            after,
        )

    async def revoke(self, token_id: str) -> bool:
        """Remove a token for good; False if there is none."""
        return await self._change("DELETE FROM tokens WHERE id = $1", token_id) > 0


class ToolPins(Noun):
    """What the tools of the operator's MCP servers looked like when they were last seen, as digests."""

    async def swap(self, place: bytes, digest: bytes, now: int) -> bytes | None:
        """Keep a place's digest and return the one that was kept before, None for a new place."""

        async def work(tx: Tx) -> bytes | None:
            before = await tx.fetchval("SELECT digest FROM tool_pins WHERE place = $1 FOR UPDATE", place)
            if before is None or bytes(before) != digest:
                await tx.execute(
                    """INSERT INTO tool_pins VALUES ($1, $2, $3)
                    ON CONFLICT (place) DO UPDATE SET digest = excluded.digest, seen_at = excluded.seen_at""",
                    place,
                    digest,
                    now,
                )
            return None if before is None else bytes(before)

        return await self._engine.write(work)

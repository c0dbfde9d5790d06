"""What MCP keeps: tokens of outside agents, and how the tools of the operator's servers looked."""

from __future__ import annotations

from shared.errors import NoConversation
from shared.ids import Token
from shared.store import rows
from shared.store.contract import Engine, Missing, Tx
from shared.values import Page


class Tokens:
    """Credentials of outside agents, each bound to a conversation; only a digest of each is stored."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def add(self, token: Token, digest: bytes) -> None:
        """Store a token by its SHA-256; raises NotFound (its conversation)."""
        values = (token.id, digest, token.conversation_id, int(token.is_main))

        async def work(tx: Tx) -> None:
            await tx.execute(
                """INSERT INTO tokens (id, digest, conversation_id, is_main, created_at, expires_at)
                VALUES ($1, $2, $3, $4, $5, $6)""",
                *values,
                token.created_at,
                token.expires_at,
            )

        try:
            await self._engine.write(work)
        except Missing:
            raise NoConversation(token.conversation_id) from None

    async def find(self, digest: bytes, now: int) -> Token | None:
        """Return the token with this digest unless it is revoked, expired, or its conversation is deleted."""

        async def work(tx: Tx) -> Token | None:
            row = await tx.fetchrow(
                "SELECT * FROM tokens WHERE digest = $1 AND (expires_at IS NULL OR expires_at > $2)",
                digest,
                now,
            )
            return None if row is None else rows.token(row)

        return await self._engine.read(work)

    async def page(self, *, limit: int, cursor: str | None) -> Page[Token]:
        """Return tokens, expired ones too, in the order they were made."""
        after = rows.decode_cursor(cursor, int) or [0]

        async def work(tx: Tx) -> Page[Token]:
            found = await tx.fetch(
                "SELECT * FROM tokens WHERE number > $1 ORDER BY number LIMIT $2", *after, limit + 1
            )
            return rows.page(found, limit, rows.token, lambda row: (row["number"],))

        return await self._engine.read(work)

    async def revoke(self, token_id: str) -> bool:
        """Remove a token for good; False if there is none."""
        return (
            await self._engine.write(lambda tx: tx.execute("DELETE FROM tokens WHERE id = $1", token_id)) > 0
        )


class ToolPins:
    """What the tools of the operator's MCP servers looked like when they were last seen, as digests."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

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

"""Tokens of outside agents and pinned tool lists in PostgreSQL."""

from __future__ import annotations

from shared.errors import NoConversation
from shared.models import Page
from shared.store import rows
from shared.store.postgres.database import FOREIGN_KEY_VIOLATION, Database
from shared.store.postgres.driver import Connection, is_server_error
from shared.tokens import Token


class PostgresTokens:
    """Implements the Tokens contract."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def add(self, token: Token, digest: bytes) -> None:
        """Store a token by its digest; raises NotFound."""

        async def work(connection: Connection) -> None:
            await connection.execute(
                """INSERT INTO tokens (id, digest, conversation_id, is_main, created_at, expires_at)
                VALUES ($1, $2, $3, $4, $5, $6)""",
                token.id,
                digest,
                token.conversation_id,
                int(token.is_main),
                token.created_at,
                token.expires_at,
            )

        try:
            await self._db.write(work)
        except Exception as error:
            if is_server_error(error, FOREIGN_KEY_VIOLATION):
                raise NoConversation(token.conversation_id) from error
            raise

    async def find(self, digest: bytes, now: int) -> Token | None:
        """Return the living token with this digest."""

        async def work(connection: Connection) -> Token | None:
            row = await connection.fetchrow(
                "SELECT * FROM tokens WHERE digest = $1 AND (expires_at IS NULL OR expires_at > $2)",
                digest,
                now,
            )
            return None if row is None else rows.token(row)

        return await self._db.read(work)

    async def page(self, *, limit: int, cursor: str | None) -> Page[Token]:
        """Return tokens in the order they were made."""
        after = rows.decode_cursor(cursor, int) or [0]

        async def work(connection: Connection) -> Page[Token]:
            found = await connection.fetch(
                "SELECT * FROM tokens WHERE number > $1 ORDER BY number LIMIT $2", *after, limit + 1
            )
            return rows.page(found, limit, rows.token, lambda row: (row["number"],))

        return await self._db.read(work)

    async def revoke(self, token_id: str) -> bool:
        """Remove a token; False if there is none."""

        async def work(connection: Connection) -> bool:
            row = await connection.fetchrow("DELETE FROM tokens WHERE id = $1 RETURNING id", token_id)
            return row is not None

        return await self._db.write(work)


class PostgresToolPins:
    """Implements the ToolPins contract."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def swap(self, place: bytes, digest: bytes, now: int) -> bytes | None:
        """Keep a digest and return the one before."""

        async def work(connection: Connection) -> bytes | None:
            before = await connection.fetchval(
                "SELECT digest FROM tool_pins WHERE place = $1 FOR UPDATE", place
            )
            await connection.execute(
                """INSERT INTO tool_pins VALUES ($1, $2, $3)
                ON CONFLICT (place) DO UPDATE SET digest = excluded.digest, seen_at = excluded.seen_at""",
                place,
                digest,
                now,
            )
            return None if before is None else bytes(before)

        return await self._db.write(work)

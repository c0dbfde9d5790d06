"""Tokens of outside agents in SQLite."""

from __future__ import annotations

import sqlite3

from shared.errors import NoConversation
from shared.models import Page
from shared.store import rows
from shared.store.sqlite.engine import Database
from shared.tokens import Token


class SqliteTokens:
    """Implements the Tokens contract."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def add(self, token: Token, digest: bytes) -> None:
        """Store a token by its digest; raises NotFound."""

        def work(connection: sqlite3.Connection) -> None:
            try:
                connection.execute(
                    """INSERT INTO tokens (id, digest, conversation_id, is_main, created_at, expires_at)
                    VALUES (?, ?, ?, ?, ?, ?)""",
                    (
                        token.id,
                        digest,
                        token.conversation_id,
                        token.is_main,
                        token.created_at,
                        token.expires_at,
                    ),
                )
            except sqlite3.IntegrityError as error:
                raise NoConversation(token.conversation_id) from error

        await self._db.write(work)

    async def find(self, digest: bytes, now: int) -> Token | None:
        """Return the living token with this digest."""

        def work(connection: sqlite3.Connection) -> Token | None:
            row = connection.execute(
                "SELECT * FROM tokens WHERE digest = ? AND (expires_at IS NULL OR expires_at > ?)",
                (digest, now),
            ).fetchone()
            return None if row is None else rows.token(row)

        return await self._db.read(work)

    async def page(self, *, limit: int, cursor: str | None) -> Page[Token]:
        """Return tokens in the order they were made."""
        after = rows.decode_cursor(cursor, int) or [0]

        def work(connection: sqlite3.Connection) -> Page[Token]:
            found = connection.execute(
                "SELECT * FROM tokens WHERE number > ? ORDER BY number LIMIT ?", (*after, limit + 1)
            ).fetchall()
            return rows.page(found, limit, rows.token, lambda row: (row["number"],))

        return await self._db.read(work)

    async def revoke(self, token_id: str) -> bool:
        """Remove a token; False if there is none."""

        def work(connection: sqlite3.Connection) -> bool:
            return connection.execute("DELETE FROM tokens WHERE id = ?", (token_id,)).rowcount > 0

        return await self._db.write(work)

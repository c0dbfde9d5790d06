"""Pinned tool lists in SQLite."""

from __future__ import annotations

import sqlite3

from shared.store.sqlite.engine import Database


class SqliteToolPins:
    """Implements the ToolPins contract."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def first(self, place: bytes, digest: bytes, now: int) -> bytes:
        """Return the digest first seen at a place; a place that is known is only read."""

        def look(connection: sqlite3.Connection) -> list[bytes]:
            found = connection.execute("SELECT digest FROM tool_pins WHERE place = ?", (place,))
            return [bytes(row["digest"]) for row in found]

        def pin(connection: sqlite3.Connection) -> list[bytes]:
            connection.execute("INSERT OR IGNORE INTO tool_pins VALUES (?, ?, ?)", (place, digest, now))
            return look(connection)

        return (await self._db.read(look) or await self._db.write(pin))[0]

    async def forget(self, place: bytes) -> None:
        """Let the next digest be the first one again."""

        def work(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM tool_pins WHERE place = ?", (place,))

        await self._db.write(work)

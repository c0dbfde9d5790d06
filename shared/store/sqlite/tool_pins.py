"""Pinned tool lists in SQLite."""

from __future__ import annotations

import sqlite3

from shared.store.sqlite.engine import Database


class SqliteToolPins:
    """Implements the ToolPins contract."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def swap(self, place: bytes, digest: bytes, now: int) -> bytes | None:
        """Keep a digest and return the one before."""

        def work(connection: sqlite3.Connection) -> list[bytes]:
            found = connection.execute("SELECT digest FROM tool_pins WHERE place = ?", (place,)).fetchall()
            before = [bytes(row["digest"]) for row in found]
            if before != [digest]:
                connection.execute("INSERT OR REPLACE INTO tool_pins VALUES (?, ?, ?)", (place, digest, now))
            return before

        return next(iter(await self._db.write(work)), None)

"""Scheduled tasks in SQLite."""

from __future__ import annotations

from shared.store.sqlite.engine import Database


class SqliteTasks:
    """Implements the Tasks contract."""

    def __init__(self, database: Database) -> None:
        self._db = database

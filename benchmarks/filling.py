"""Databases of a given size, written straight into the tables: a million messages in about ten seconds."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from shared import jsons
from shared.store.sqlite.engine import connect
from shared.store.sqlite.migrations import migrate

T0 = 1_800_000_000_000
BATCH = 50_000


def fill(
    path: Path, *, conversations: int, messages_each: int, text_bytes: int = 100, tasks_each: float = 0
) -> None:
    """Make a database with so many conversations and messages, and a task for every so many conversations."""
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = connect(path, busy_ms=1000)
    migrate(connection)
    connection.execute("PRAGMA cache_size=-262144")
    text = _text(text_bytes)
    _insert(connection, "conversations", 8, _conversations(conversations, messages_each))
    _insert(connection, "messages", 10, _messages(conversations, messages_each, text))
    _insert(connection, "scheduled_tasks", 14, _tasks(int(conversations * tasks_each)))
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()


COLUMNS = {
    "conversations": "id, session_id, owner_id, temporary, created_at, last_activity, message_count,"
    " next_seq",
    "messages": "conversation_id, seq, id, run_id, role, sender, sender_name, text, blocks, created_at",
    "scheduled_tasks": "id, conversation_id, prompt, schedule_type, schedule_value, timezone, context_mode,"
    " catch_up, status, next_run, created_at, updated_at, attempts, revision",
}


def _insert(connection: sqlite3.Connection, table: str, width: int, rows: Iterator[tuple[Any, ...]]) -> None:
    statement = f"INSERT INTO {table} ({COLUMNS[table]}) VALUES ({', '.join('?' * width)})"
    while batch := list(islice(rows, BATCH)):
        connection.execute("BEGIN")
        connection.executemany(statement, batch)
        connection.execute("COMMIT")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _conversations(count: int, messages_each: int) -> Iterator[tuple[Any, ...]]:
    for number in range(count):
        name = _name(number)
        yield name, f"sess-{number}", name, 0, T0, T0 + number, messages_each, messages_each + 1


def _messages(conversations: int, each: int, text: str) -> Iterator[tuple[Any, ...]]:
    blocks = jsons.dumps([{"type": "text", "text": text}])
    for number in range(conversations):
        name = _name(number)
        for seq in range(1, each + 1):
            role = "user" if seq % 2 else "assistant"
            yield name, seq, f"msg-{number}-{seq}", None, role, "user", "Ann", text, blocks, T0 + seq


def _tasks(count: int) -> Iterator[tuple[Any, ...]]:
    for number in range(count):
        yield (
            f"task-{number}", _name(number), "Look around", "interval", "86400000", "UTC", "isolated",
            "once", "active", T0 * 2, T0, T0, 0, 0,
        )  # fmt: skip


def _name(number: int) -> str:
    return f"conv-{number:08d}"


def _text(length: int) -> str:
    return "".join(random.Random(1).choices("abcdefghij klmnop", k=length))

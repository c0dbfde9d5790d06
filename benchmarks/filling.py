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
from shared.store.sqlite.store import migrate

T0 = 1_800_000_000_000
BATCH = 50_000


def fill(
    path: Path,
    *,
    conversations: int,
    messages_each: int,
    text_bytes: int = 100,
    tasks_each: float = 0,
    principals: int = 0,
) -> None:
    """Make a database with so many conversations and messages, and a task for every so many conversations.

    With principals each conversation is one's, and there is a run for every two messages.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = connect(path, busy_ms=1000)
    migrate(connection)
    connection.execute("PRAGMA cache_size=-262144")
    text = _text(text_bytes)
    _insert(connection, "principals", 6, _principals(principals))
    _insert(connection, "conversations", 9, _conversations(conversations, messages_each, principals))
    _insert(connection, "messages", 10, _messages(conversations, messages_each, text))
    _insert(connection, "scheduled_tasks", 14, _tasks(int(conversations * tasks_each)))
    if principals:
        _insert(connection, "runs", 10, _runs(conversations, messages_each // 2, principals))
        _insert(connection, "usage_by_conversation", 9, _usage(conversations))
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()


COLUMNS = {
    "conversations": "id, session_id, owner_id, temporary, created_at, last_activity, message_count,"
    " next_seq, principal_id",
    "principals": "id, name, directory, created_at, status, terms",
    "runs": "id, conversation_id, state, fence, lease_owner, lease_until, message_id, created_at, answer,"
    " principal_id",
    "usage_by_conversation": "conversation_id, day, runs, input_tokens, output_tokens,"
    " cache_creation_input_tokens, cache_read_input_tokens, unsettled_tokens, microdollars",
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


def _whose(number: int, principals: int) -> str:
    return f"prin-{number % principals:08d}" if principals else "operator"


def _principals(count: int) -> Iterator[tuple[Any, ...]]:
    for number in range(count):
        yield _whose(number, count), f"user {number}", f"directory{number}", T0, "active", "{}"


def _conversations(count: int, messages_each: int, principals: int) -> Iterator[tuple[Any, ...]]:
    for number in range(count):
        name, whose = _name(number), _whose(number, principals)
        yield name, f"sess-{number}", name, 0, T0, T0 + number, messages_each, messages_each + 1, whose


def _runs(conversations: int, each: int, principals: int) -> Iterator[tuple[Any, ...]]:
    for number in range(conversations):
        name, whose = _name(number), _whose(number, principals)
        for run in range(each):
            said = f"msg-{number}-{2 * run + 1}"
            yield f"run-{number}-{run}", name, "success", run, "host", 0, said, T0, "{}", whose


def _usage(conversations: int) -> Iterator[tuple[Any, ...]]:
    for number in range(conversations):
        yield _name(number), "2026-01-31", *[number] * 7


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

"""Idempotency keys in SQLite: what a caller's key stands for, inside a transaction of somebody else's."""

from __future__ import annotations

import sqlite3

from shared import jsons
from shared.errors import Conflict, KeyTaken
from shared.models import Idempotency, KeyedAnswer
from shared.store.retention import KEY_LIFE_MS


def keyed(connection: sqlite3.Connection, idempotency: Idempotency, now: int) -> KeyedAnswer | None:
    """Return what a key of the last 24 h stands for; raises Conflict for another body."""
    row = connection.execute(
        """SELECT digest, subject, conversation_id, status, body FROM idempotency_keys
        WHERE route = ? AND key = ? AND created_at > ?""",
        (idempotency.route, idempotency.key, now - KEY_LIFE_MS),
    ).fetchone()
    if row is None:
        return None
    if row["digest"] != idempotency.digest:
        raise Conflict(
            "Idempotency-Key: was used with another body; use a new key for a new request",
            code="idempotency_mismatch",
        )
    body = None if row["body"] is None else jsons.loads(row["body"])
    return KeyedAnswer(row["subject"], row["conversation_id"], row["status"], body)


def retry_of(connection: sqlite3.Connection, idempotency: Idempotency, now: int) -> sqlite3.Row | None:
    """Return the cut-off run that this key may retry; raises KeyTaken when it stands for anything else."""
    answer = keyed(connection, idempotency, now)
    if answer is None:
        return None
    row: sqlite3.Row | None = connection.execute(
        "SELECT conversation_id, message_id FROM runs WHERE id = ? AND code = 'retryable'", (answer.subject,)
    ).fetchone()
    if row is None:
        raise KeyTaken(answer)
    return row


def keep(
    connection: sqlite3.Connection,
    idempotency: Idempotency,
    subject: str,
    conversation_id: str | None,
    now: int,
) -> None:
    """Let the key stand for a run or another subject from now on."""
    connection.execute(
        """INSERT OR REPLACE INTO idempotency_keys (route, key, digest, subject, conversation_id, created_at)
        VALUES (?, ?, ?, ?, ?, ?)""",
        (idempotency.route, idempotency.key, idempotency.digest, subject, conversation_id, now),
    )

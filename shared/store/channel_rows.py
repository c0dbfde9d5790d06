"""Rows of channels to values."""

from __future__ import annotations

from typing import Final

from shared import jsons
from shared.channel_values import Chat, Delivery, Saying, Update
from shared.store.rows import Row

LONGEST_PAUSE_MS: Final = 3600 * 1000
"""A try that is put off for longer was put off by another clock."""


def chat(row: Row) -> Chat:
    """Read a row of ``channel_chats``."""
    return Chat(
        channel=row["channel"],
        id=row["chat_id"],
        private=bool(row["private"]),
        sender_id=row["sender_id"],
        sender_name=row["sender_name"],
    )


def update(row: Row) -> Update:
    """Read a row of ``channel_updates``."""
    return Update(
        number=row["number"],
        channel=row["channel"],
        update_id=row["update_id"],
        chat_id=row["chat_id"],
        body=jsons.loads(row["body"]),
        received_at=row["received_at"],
        run_id=row["run_id"],
        conversation_id=row["conversation_id"],
        draft_id=row["draft_id"],
    )


def delivery(row: Row) -> Delivery:
    """Read a row of ``channel_deliveries``."""
    return Delivery(
        number=row["number"],
        conversation_id=row["conversation_id"],
        channel=row["channel"],
        chat_id=row["chat_id"],
        saying=Saying(row["source"], row["text"], row["reply_to"], row["draft_id"]),
        parts_sent=row["parts_sent"],
        attempts=row["attempts"],
        created_at=row["created_at"],
        error=row["error"],
    )

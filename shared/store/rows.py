"""Rows of any engine to values, cursors to texts and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Final, Protocol, TypeVar

from shared import jsons
from shared.compactions import Compaction
from shared.errors import InvalidInput
from shared.ids import Token
from shared.values import (
    Conversation,
    Event,
    HistoryEntry,
    Message,
    NewMessage,
    Outbound,
    Page,
    Run,
    RunState,
    Usage,
)

T = TypeVar("T")

REFUSED: Final = "refused"
"""Code of a run that the model refused; its turn is marked so."""


class Row(Protocol):
    """A row as every engine's driver gives it: values by the column's name or place."""

    def __getitem__(self, column: Any, /) -> Any: ...


def conversation(row: Row) -> Conversation:
    """Read a row of ``CONVERSATION_COLUMNS``."""
    return Conversation(
        id=row["id"],
        session_id=row["session_id"],
        owner_id=row["owner_id"],
        temporary=bool(row["temporary"]),
        created_at=row["created_at"],
        last_activity=row["last_activity"],
        message_count=row["message_count"],
        running=bool(row["running"]),
        trusted=bool(row["trusted"]),
        title=row["title"],
    )


def message(row: Row) -> Message:
    """Read a visible message."""
    return Message(
        id=row["id"],
        conversation_id=row["conversation_id"],
        seq=row["seq"],
        role=row["role"],
        sender=row["sender"],
        sender_name=row["sender_name"],
        text=row["text"],
        created_at=row["created_at"],
        refused=bool(row["refused"]),
    )


def message_values(
    conversation_id: str, run_id: str | None, messages: Sequence[NewMessage], first_seq: int, now: int
) -> list[tuple[Any, ...]]:
    """Return what is stored of new messages, in the order of the columns of every engine's INSERT."""
    return [
        (
            conversation_id,
            first_seq + offset,
            message.id,
            run_id,
            message.role,
            message.sender,
            message.sender_name,
            message.text,
            jsons.dumps(message.blocks),
            now,
        )
        for offset, message in enumerate(messages)
    ]


def history_entry(row: Row) -> HistoryEntry:
    """Read a message for the model."""
    return HistoryEntry(
        role=row["role"],
        blocks=jsons.loads(row["blocks"]),
        seq=row["seq"],
        run_id=row["run_id"],
        text=row["text"],
        sender_name=row["sender_name"],
        created_at=row["created_at"],
        refused=bool(row["refused"]),
    )


def run(row: Row) -> Run:
    """Read a run."""
    return Run(
        id=row["id"],
        conversation_id=row["conversation_id"],
        state=RunState(row["state"]),
        fence=row["fence"],
        message_id=row["message_id"],
        created_at=row["created_at"],
        finished_at=row["finished_at"],
        model=row["model"],
        usage=Usage(**jsons.loads(row["usage"])),
        error=row["error"],
        code=row["code"],
        answer=None if row["answer"] is None else jsons.loads(row["answer"]),
    )


def event(row: Row) -> Event:
    """Read a run's event."""
    return Event(seq=row["seq"], name=row["name"], data=jsons.loads(row["data"]))


def outbound(row: Row) -> Outbound:
    """Read an outbound message."""
    return Outbound(
        seq=row["seq"],
        id=row["id"],
        conversation_id=row["conversation_id"],
        source_id=row["source_id"],
        text=row["text"],
        sender=row["sender"],
        created_at=row["created_at"],
    )


def compaction(row: Row) -> Compaction:
    """Read a compaction."""
    return Compaction(
        kind=row["kind"],
        through_seq=row["through_seq"],
        first_seq=row["first_seq"],
        text=row["text"],
        cut_through_seq=row["cut_through_seq"],
        cut_chars=row["cut_chars"],
        thinking_through_seq=row["thinking_through_seq"],
        left_out=jsons.loads(row["left_out"]),
        model=row["model"],
        usage=Usage(**jsons.loads(row["usage"])),
        number=row["number"],
        created_at=row["created_at"],
        archived=bool(row["archived"]),
        message_seq=row["message_seq"],
        message_chars=row["message_chars"],
    )


def token(row: Row) -> Token:
    """Read a token, without its digest."""
    return Token(
        id=row["id"],
        conversation_id=row["conversation_id"],
        is_main=bool(row["is_main"]),
        created_at=row["created_at"],
        expires_at=row["expires_at"],
    )


def usage_text(usage: Usage) -> str:
    """Return usage as stored."""
    return jsons.dumps(asdict(usage))


def page(
    rows: Sequence[Row],
    limit: int,
    make: Callable[[Row], T],
    key: Callable[[Row], Sequence[Any]],
) -> Page[T]:
    """Make a page of ``limit`` items from ``limit + 1`` rows; ``key`` is what the next page starts after."""
    items = [make(row) for row in rows[:limit]]
    cursor = encode_cursor(key(rows[limit - 1])) if len(rows) > limit else None
    return Page(items, cursor)


def encode_cursor(key: Sequence[Any]) -> str:
    """Return an opaque text for a keyset position."""
    return jsons.dump_bytes(list(key)).hex()


def decode_cursor(cursor: str | None, *kinds: type) -> list[Any] | None:
    """Return the keyset position of a cursor with these kinds of parts; raises InvalidInput."""
    if not cursor:
        return None
    try:
        key = jsons.loads(bytes.fromhex(cursor))
    except ValueError:
        key = None
    if (
        not isinstance(key, list)
        or len(key) != len(kinds)
        or any(type(part) is not kind for part, kind in zip(key, kinds, strict=True))
        or any(isinstance(part, int) and abs(part) >= 2**63 for part in key)
    ):
        raise InvalidInput("cursor: must be the next_cursor of an earlier answer")
    return key

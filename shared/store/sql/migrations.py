"""Changes of the schema, written once for every engine. To add a table or a column, append to ``MIGRATIONS``.

Statements are PostgreSQL's, but for these words in angle brackets, which differ:

- ``<id>``: a text that is compared byte by byte; every column of a key has it
- ``<integer>``: a whole number of 64 bits, instants among them; flags are ``INTEGER``
- ``<bytes>``
- ``<number>``: a row's own number, its primary key; ``<sequence>``: one that is never given out twice
- ``<table>``, ``<by key>``: what ends a table, the second where rows lie in the order of their key

A landed migration is never edited: a change is a new one. Sessions outlive an upgrade, so names stay.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from shared.errors import StoreVersion

WORD: Final = re.compile(r"<(\w+(?: \w+)?)>")


@dataclass(frozen=True, slots=True)
class Migration:
    """``statements`` for every engine, then each one's own: triggers, rights of the tool servers' role."""

    statements: tuple[str, ...]
    sqlite: tuple[str, ...] = ()
    postgres: tuple[str, ...] = ()


TRUST: Final = Migration(
    (
        # Unknown (NULL counts as no) where a channel began a conversation: whose chats are trusted is a
        # setting, so the channel's next start decides.
        "ALTER TABLE conversations ADD COLUMN trusted INTEGER DEFAULT 1",
        """UPDATE conversations SET trusted = NULL WHERE id IN (
            SELECT conversation_id FROM channel_chats WHERE conversation_id = channel || ':' || chat_id
            OR conversation_id LIKE channel || ':' || chat_id || '.%')""",
        """UPDATE conversations SET trusted = 0
            WHERE owner_id IN (SELECT id FROM conversations WHERE trusted IS NULL) AND owner_id <> id""",
    ),
    postgres=(
        "DROP POLICY tool_makes ON conversations",
        """CREATE POLICY tool_makes ON conversations FOR INSERT WITH CHECK (
            id = (SELECT tool_conversation()) AND owner_id = id AND temporary = 0 AND trusted = 0)""",
    ),
)

TITLES: Final = Migration(("ALTER TABLE conversations ADD COLUMN title TEXT",))

SIGN_INS: Final = Migration(
    (
        """CREATE TABLE mcp_sign_ins (
            server <id> PRIMARY KEY,
            sealed <bytes> NOT NULL,
            changed_at <integer> NOT NULL
        ) <table>""",
    )
)

MIGRATIONS: Final = (TRUST, TITLES, SIGN_INS)
"""Oldest first; they come after what each engine had before they were written once."""


def in_words(statements: Sequence[str], words: Mapping[str, str]) -> tuple[str, ...]:
    """Return statements with what an engine says for each word in angle brackets."""
    return tuple(WORD.sub(lambda word: words[word[1]], statement).rstrip() for statement in statements)


def steps(
    engine: Literal["sqlite", "postgres"], landed: Sequence[Sequence[str]], words: Mapping[str, str]
) -> tuple[tuple[str, ...], ...]:
    """Return the statements of each of an engine's migrations; ``landed``: its own, before those here."""
    own = ((*each.statements, *getattr(each, engine)) for each in MIGRATIONS)
    return tuple(in_words(statements, words) for statements in (*landed, *own))


def check_not_newer(version: int, known: int) -> None:
    """Raise StoreVersion for a database of a newer program."""
    if version > known:
        raise StoreVersion(
            f"The database has schema version {version}, this program knows {known}: "
            "start the newer program, or restore a backup made by this one."
        )

"""The schema, as numbered migrations kept by sqlite-utils in ``schema_migrations``.

``PRAGMA user_version`` holds the number of the newest one, so that a start without pending migrations
doesn't pay for the import of sqlite-utils (0.18 s).
"""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from shared.errors import StoreError, StoreVersion
from shared.store.channel_rows import SAID
from shared.store.rows import MESSAGES_THAT_STAND, TITLES
from shared.store.sqlite.failures import is_damage

if TYPE_CHECKING:
    from sqlite_utils import Database as UtilsDatabase

FIRST: Final = (
    """CREATE TABLE conversations (
        id TEXT PRIMARY KEY,
        session_id TEXT NOT NULL,
        owner_id TEXT NOT NULL,
        temporary INTEGER NOT NULL DEFAULT 0,
        created_at INTEGER NOT NULL,
        last_activity INTEGER NOT NULL,
        message_count INTEGER NOT NULL DEFAULT 0,
        next_seq INTEGER NOT NULL DEFAULT 1,
        fence INTEGER NOT NULL DEFAULT 0
    ) STRICT""",
    """CREATE INDEX conversations_by_activity ON conversations (last_activity DESC, id DESC)
        WHERE temporary = 0""",
    "CREATE INDEX all_conversations_by_activity ON conversations (last_activity DESC, id DESC)",
    "CREATE INDEX conversations_by_owner ON conversations (owner_id) WHERE temporary = 1",
    """CREATE TABLE messages (
        conversation_id TEXT NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
        seq INTEGER NOT NULL,
        id TEXT NOT NULL UNIQUE,
        run_id TEXT,
        role TEXT NOT NULL,
        sender TEXT NOT NULL,
        sender_name TEXT NOT NULL,
        text TEXT,
        blocks TEXT NOT NULL,
        created_at INTEGER NOT NULL,
        PRIMARY KEY (conversation_id, seq)
    ) STRICT""",
    "CREATE INDEX messages_for_people ON messages (conversation_id, seq) WHERE text IS NOT NULL",
    """CREATE TABLE runs (
        number INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        conversation_id TEXT NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
        state TEXT NOT NULL,
        fence INTEGER NOT NULL,
        lease_owner TEXT NOT NULL,
        lease_until INTEGER NOT NULL,
        effect_ahead INTEGER NOT NULL DEFAULT 0,
        message_id TEXT NOT NULL,
        created_at INTEGER NOT NULL,
        finished_at INTEGER,
        model TEXT NOT NULL DEFAULT '',
        usage TEXT NOT NULL DEFAULT '{}',
        error TEXT,
        code TEXT,
        answer TEXT
    ) STRICT""",
    # The database, not a lock in memory, keeps a conversation to one running run.
    "CREATE UNIQUE INDEX one_running_run ON runs (conversation_id) WHERE state = 'running'",
    "CREATE INDEX runs_of_conversation ON runs (conversation_id, number)",
    """CREATE TABLE run_events (
        run_id TEXT NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
        seq INTEGER NOT NULL,
        name TEXT NOT NULL,
        data TEXT NOT NULL,
        created_at INTEGER NOT NULL,
        PRIMARY KEY (run_id, seq)
    ) STRICT, WITHOUT ROWID""",
    "CREATE INDEX run_events_by_age ON run_events (created_at)",
    """CREATE TABLE idempotency_keys (
        route TEXT NOT NULL,
        key TEXT NOT NULL,
        digest TEXT NOT NULL,
        subject TEXT NOT NULL,
        conversation_id TEXT,
        status INTEGER,
        body TEXT,
        created_at INTEGER NOT NULL,
        PRIMARY KEY (route, key)
    ) STRICT""",
    "CREATE INDEX idempotency_keys_by_age ON idempotency_keys (created_at)",
    "CREATE INDEX idempotency_keys_by_conversation ON idempotency_keys (conversation_id)",
    """CREATE TABLE outbound_messages (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        conversation_id TEXT NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
        source_id TEXT NOT NULL,
        text TEXT NOT NULL,
        sender TEXT NOT NULL,
        created_at INTEGER NOT NULL,
        delivered_at INTEGER
    ) STRICT""",
    "CREATE INDEX outbound_by_source ON outbound_messages (source_id, seq)",
    "CREATE INDEX outbound_by_conversation ON outbound_messages (conversation_id, seq)",
    "CREATE INDEX outbound_by_delivery ON outbound_messages (delivered_at) WHERE delivered_at IS NOT NULL",
    """CREATE TABLE scheduled_tasks (
        number INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        conversation_id TEXT NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
        prompt TEXT NOT NULL,
        schedule_type TEXT NOT NULL,
        schedule_value TEXT NOT NULL,
        timezone TEXT NOT NULL,
        context_mode TEXT NOT NULL,
        catch_up TEXT NOT NULL,
        status TEXT NOT NULL,
        next_run INTEGER,
        attempts INTEGER NOT NULL DEFAULT 0,
        revision INTEGER NOT NULL DEFAULT 0,
        created_at INTEGER NOT NULL,
        updated_at INTEGER NOT NULL,
        last_run INTEGER,
        last_state TEXT,
        served_slot INTEGER,
        plan INTEGER NOT NULL DEFAULT 0,
        waits INTEGER NOT NULL DEFAULT 0,
        caught_up INTEGER NOT NULL DEFAULT 0
    ) STRICT""",
    "CREATE INDEX tasks_of_conversation ON scheduled_tasks (conversation_id, number)",
    "CREATE INDEX tasks_by_status ON scheduled_tasks (status, number)",
    # waits: 0 free, 1 for a running run of its conversation, 2 for its own claimed slot. A claim looks at the
    # free ones only, so those that must wait are not looked at again and again.
    """CREATE INDEX tasks_due ON scheduled_tasks (waits, next_run, number)
        WHERE status = 'active' AND next_run IS NOT NULL""",
    "CREATE INDEX tasks_waiting ON scheduled_tasks (conversation_id) WHERE waits = 1",
    """CREATE TRIGGER run_ended AFTER UPDATE OF state ON runs
        WHEN old.state = 'running' AND new.state <> 'running'
        BEGIN UPDATE scheduled_tasks SET waits = 0
            WHERE conversation_id = new.conversation_id AND waits = 1; END""",
    """CREATE TABLE task_runs (
        number INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        task_id TEXT NOT NULL REFERENCES scheduled_tasks (id) ON DELETE CASCADE,
        slot TEXT NOT NULL,
        state TEXT NOT NULL,
        attempt INTEGER NOT NULL,
        fence INTEGER NOT NULL,
        owner TEXT NOT NULL,
        lease_until INTEGER NOT NULL,
        plan INTEGER NOT NULL,
        started_at INTEGER NOT NULL,
        finished_at INTEGER,
        run_id TEXT,
        conversation_id TEXT,
        result TEXT,
        error TEXT,
        UNIQUE (task_id, slot)
    ) STRICT""",
    "CREATE INDEX task_runs_of_task ON task_runs (task_id, number)",
    "CREATE INDEX task_runs_running ON task_runs (lease_until) WHERE state = 'running'",
    "CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID",
    "INSERT INTO counters VALUES ('conversations', 0), ('tasks', 0)",
    """CREATE TRIGGER conversation_added AFTER INSERT ON conversations WHEN new.temporary = 0
        BEGIN UPDATE counters SET value = value + 1 WHERE name = 'conversations'; END""",
    """CREATE TRIGGER conversation_removed AFTER DELETE ON conversations WHEN old.temporary = 0
        BEGIN UPDATE counters SET value = value - 1 WHERE name = 'conversations'; END""",
    """CREATE TRIGGER task_added AFTER INSERT ON scheduled_tasks
        BEGIN UPDATE counters SET value = value + 1 WHERE name = 'tasks'; END""",
    """CREATE TRIGGER task_removed AFTER DELETE ON scheduled_tasks
        BEGIN UPDATE counters SET value = value - 1 WHERE name = 'tasks'; END""",
)

SECOND: Final = (
    # Retention asks whether any log row still needs a temporary conversation.
    "CREATE INDEX task_runs_by_conversation ON task_runs (conversation_id) WHERE conversation_id IS NOT NULL",
    "CREATE INDEX temporary_by_activity ON conversations (last_activity) WHERE temporary = 1",
)

# What model calls used. A day's total stays when a conversation is deleted: a budget must not come back.
THIRD: Final = (
    """CREATE TABLE usage_by_day (
        day TEXT PRIMARY KEY,
        runs INTEGER NOT NULL,
        input_tokens INTEGER NOT NULL,
        output_tokens INTEGER NOT NULL,
        cache_creation_input_tokens INTEGER NOT NULL,
        cache_read_input_tokens INTEGER NOT NULL,
        unsettled_tokens INTEGER NOT NULL,
        microdollars INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID""",
    """CREATE TABLE usage_by_conversation (
        conversation_id TEXT NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
        day TEXT NOT NULL,
        runs INTEGER NOT NULL,
        input_tokens INTEGER NOT NULL,
        output_tokens INTEGER NOT NULL,
        cache_creation_input_tokens INTEGER NOT NULL,
        cache_read_input_tokens INTEGER NOT NULL,
        unsettled_tokens INTEGER NOT NULL,
        microdollars INTEGER NOT NULL,
        PRIMARY KEY (conversation_id, day)
    ) STRICT, WITHOUT ROWID""",
    "CREATE INDEX usage_by_conversation_newest ON usage_by_conversation (day, conversation_id)",
    "ALTER TABLE runs ADD COLUMN reserved_tokens INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE runs ADD COLUMN reserved_microdollars INTEGER NOT NULL DEFAULT 0",
)

# How the beginning of a long conversation is sent to the model; the newest row counts.
FOURTH: Final = (
    """CREATE TABLE compactions (
        conversation_id TEXT NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
        number INTEGER NOT NULL,
        kind TEXT NOT NULL,
        first_seq INTEGER NOT NULL,
        through_seq INTEGER NOT NULL,
        text TEXT NOT NULL,
        cut_through_seq INTEGER NOT NULL,
        cut_chars INTEGER NOT NULL,
        thinking_through_seq INTEGER NOT NULL,
        model TEXT NOT NULL,
        usage TEXT NOT NULL,
        created_at INTEGER NOT NULL,
        archived INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (conversation_id, number)
    ) STRICT""",
)

# Channels: who is in which conversation, what came in (the body goes once it is handled), what goes out.
FIFTH: Final = (
    """CREATE TABLE channel_chats (
        number INTEGER PRIMARY KEY,
        conversation_id TEXT NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
        channel TEXT NOT NULL,
        chat_id TEXT NOT NULL,
        current INTEGER NOT NULL,
        private INTEGER NOT NULL,
        sender_id TEXT NOT NULL,
        sender_name TEXT NOT NULL,
        UNIQUE (conversation_id, channel, chat_id)
    ) STRICT""",
    "CREATE UNIQUE INDEX one_current_conversation ON channel_chats (channel, chat_id) WHERE current = 1",
    "CREATE INDEX conversations_of_chat ON channel_chats (channel, chat_id, number)",
    """CREATE TABLE channel_updates (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        channel TEXT NOT NULL,
        update_id TEXT NOT NULL,
        chat_id TEXT NOT NULL,
        urgent INTEGER NOT NULL,
        body TEXT NOT NULL,
        received_at INTEGER NOT NULL,
        run_id TEXT,
        conversation_id TEXT,
        draft_id TEXT,
        settled_at INTEGER,
        UNIQUE (channel, update_id)
    ) STRICT""",
    """CREATE INDEX updates_waiting ON channel_updates (channel, urgent, chat_id, number)
        WHERE settled_at IS NULL""",
    "CREATE INDEX updates_by_end ON channel_updates (settled_at) WHERE settled_at IS NOT NULL",
    """CREATE TABLE channel_deliveries (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        conversation_id TEXT NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
        channel TEXT NOT NULL,
        chat_id TEXT NOT NULL,
        source TEXT NOT NULL,
        text TEXT NOT NULL,
        reply_to TEXT,
        draft_id TEXT,
        parts_sent INTEGER NOT NULL DEFAULT 0,
        attempts INTEGER NOT NULL DEFAULT 0,
        not_before INTEGER NOT NULL DEFAULT 0,
        error TEXT,
        untold INTEGER NOT NULL DEFAULT 0,
        created_at INTEGER NOT NULL,
        ended_at INTEGER,
        UNIQUE (channel, chat_id, source)
    ) STRICT""",
    "CREATE INDEX deliveries_waiting ON channel_deliveries (channel, chat_id, number) WHERE ended_at IS NULL",
    "CREATE INDEX deliveries_untold ON channel_deliveries (channel, number) WHERE untold = 1",
    "CREATE INDEX deliveries_of_conversation ON channel_deliveries (conversation_id)",
    "CREATE INDEX deliveries_by_end ON channel_deliveries (ended_at) WHERE ended_at IS NOT NULL",
)

# Tokens of outside agents: the digest alone, so that nobody who reads the database has one.
SIXTH: Final = (
    """CREATE TABLE tokens (
        number INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        digest BLOB NOT NULL UNIQUE,
        conversation_id TEXT NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
        is_main INTEGER NOT NULL,
        created_at INTEGER NOT NULL,
        expires_at INTEGER
    ) STRICT""",
    "CREATE INDEX tokens_of_conversation ON tokens (conversation_id)",
    """CREATE TABLE tool_pins (
        place BLOB PRIMARY KEY,
        digest BLOB NOT NULL,
        seen_at INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID""",
)

# Who wants a run stopped may ask any host; the one that runs it looks.
CANCELLING: Final = (
    "ALTER TABLE runs ADD COLUMN cancel_asked INTEGER NOT NULL DEFAULT 0",
    "CREATE INDEX runs_to_cancel ON runs (lease_owner) WHERE state = 'running' AND cancel_asked = 1",
)

# Tasks with an end, with an answer for people, and the tree of those that a task's runs made.
TASK_BOUNDS: Final = (
    "ALTER TABLE scheduled_tasks ADD COLUMN deliver TEXT NOT NULL DEFAULT 'answer'",
    "ALTER TABLE scheduled_tasks ADD COLUMN ends_at INTEGER",
    "ALTER TABLE scheduled_tasks ADD COLUMN max_runs INTEGER",
    "ALTER TABLE scheduled_tasks ADD COLUMN runs_begun INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE scheduled_tasks ADD COLUMN tree_id TEXT",
    "ALTER TABLE scheduled_tasks ADD COLUMN depth INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE scheduled_tasks ADD COLUMN told_failing INTEGER NOT NULL DEFAULT 0",
    "CREATE INDEX tasks_of_tree ON scheduled_tasks (tree_id) WHERE tree_id IS NOT NULL",
    # Whoever deletes a task ends its run, whichever process it runs in.
    """CREATE TRIGGER task_deleted BEFORE DELETE ON scheduled_tasks BEGIN
        UPDATE runs SET cancel_asked = 1 WHERE state = 'running' AND id IN
            (SELECT run_id FROM task_runs WHERE task_id = old.id AND state = 'running'); END""",
)
# Kinds of blocks that the model's API refused, and up to which message they are left out (JSON).
LEFT_OUT: Final = ("ALTER TABLE compactions ADD COLUMN left_out TEXT NOT NULL DEFAULT '{}'",)

SAID_TO_CHATS: Final = f"""CREATE TRIGGER said AFTER INSERT ON outbound_messages BEGIN
    INSERT INTO channel_deliveries (conversation_id, channel, chat_id, source, text, created_at)
        SELECT conversation_id, channel, chat_id, '{SAID}' || new.id, new.text, new.created_at
        FROM channel_chats WHERE conversation_id = new.conversation_id; END"""
"""In the transaction of whoever speaks: no message that chats never hear of."""

# As the other engine has them: the counters of a day in parts, and a trigger for what chats are to hear.
ALIKE: Final = (
    "ALTER TABLE usage_by_day RENAME TO usage_by_whole_day",
    """CREATE TABLE usage_by_day (
        day TEXT NOT NULL,
        shard INTEGER NOT NULL,
        runs INTEGER NOT NULL,
        input_tokens INTEGER NOT NULL,
        output_tokens INTEGER NOT NULL,
        cache_creation_input_tokens INTEGER NOT NULL,
        cache_read_input_tokens INTEGER NOT NULL,
        unsettled_tokens INTEGER NOT NULL,
        microdollars INTEGER NOT NULL,
        PRIMARY KEY (day, shard)
    ) STRICT, WITHOUT ROWID""",
    """INSERT INTO usage_by_day SELECT day, 0, runs, input_tokens, output_tokens, cache_creation_input_tokens,
        cache_read_input_tokens, unsettled_tokens, microdollars FROM usage_by_whole_day""",
    "DROP TABLE usage_by_whole_day",
    SAID_TO_CHATS,
)

TRUST: Final = (
    # Unknown (NULL counts as no) where a channel began a conversation: whose chats are trusted is a setting,
    # so the channel's next start decides.
    "ALTER TABLE conversations ADD COLUMN trusted INTEGER DEFAULT 1",
    """UPDATE conversations SET trusted = NULL WHERE id IN (
        SELECT conversation_id FROM channel_chats WHERE conversation_id = channel || ':' || chat_id
        OR conversation_id LIKE channel || ':' || chat_id || '.%')""",
    """UPDATE conversations SET trusted = 0
        WHERE owner_id IN (SELECT id FROM conversations WHERE trusted IS NULL) AND owner_id <> id""",
)

STEPS: Final[tuple[tuple[str, ...], ...]] = (
    FIRST,
    SECOND,
    THIRD,
    FOURTH,
    FIFTH,
    SIXTH,
    CANCELLING,
    MESSAGES_THAT_STAND,
    TASK_BOUNDS,
    LEFT_OUT,
    ALIKE,
    TRUST,
    TITLES,
)
"""Statements of each migration, oldest first. A landed one is never edited; a change is a new one."""

SCHEMA_VERSION: Final = len(STEPS)


def migrate(connection: sqlite3.Connection) -> None:
    """Bring a database up to SCHEMA_VERSION, with the gate held; raises StoreVersion for a newer one."""
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if version > SCHEMA_VERSION:
        raise StoreVersion(
            f"The database has schema version {version}, this program knows {SCHEMA_VERSION}: "
            "start the newer program, or restore a backup made by this one."
        )
    if version == SCHEMA_VERSION:
        return
    make_row, connection.row_factory = connection.row_factory, None
    try:
        _apply(connection)
    except sqlite3.DatabaseError as error:
        if not is_damage(error):
            raise
        raise StoreError(f"The database could not be migrated from version {version}: {error}") from error
    finally:
        connection.row_factory = make_row


def _apply(connection: sqlite3.Connection) -> None:
    with _without("numpy", "pandas"):
        from sqlite_utils import Database as UtilsDatabase
        from sqlite_utils.migrations import Migrations

    class Numbered(Migrations):
        migrations_table = "schema_migrations"

    numbered = Numbered("picoclaw")
    for number, statements in enumerate(STEPS, start=1):
        numbered(name=f"{number:04d}")(_step(number, statements))
    numbered.apply(UtilsDatabase(connection, recursive_triggers=False))


@contextmanager
def _without(*packages: str) -> Iterator[None]:
    """Have imports not find these; sqlite-utils would load them for types that no column here has."""
    modules: dict[str, Any] = sys.modules
    absent = [name for name in packages if name not in modules]
    modules.update(dict.fromkeys(absent))
    try:
        yield
    finally:
        for name in absent:
            del modules[name]


def _step(number: int, statements: tuple[str, ...]) -> Callable[[UtilsDatabase], None]:
    def apply(database: UtilsDatabase) -> None:
        for statement in statements:
            database.execute(statement)
        database.execute(f"PRAGMA user_version = {number}")

    return apply

"""The tables as the landed migrations made them, for every engine; ``migrations`` says what came since.

What is in angle brackets each engine says in its own words (``migrations.in_words``). Nothing here is edited.
"""

from __future__ import annotations

from typing import Final

TABLES: Final = (
    """CREATE TABLE conversations (
        id <id> PRIMARY KEY,
        session_id TEXT NOT NULL,
        owner_id <id> NOT NULL,
        temporary INTEGER NOT NULL DEFAULT 0,
        created_at <integer> NOT NULL,
        last_activity <integer> NOT NULL,
        message_count <integer> NOT NULL DEFAULT 0,
        next_seq <integer> NOT NULL DEFAULT 1,
        fence <integer> NOT NULL DEFAULT 0
    ) <table>""",
    """CREATE INDEX conversations_by_activity ON conversations (last_activity DESC, id DESC)
        WHERE temporary = 0""",
    "CREATE INDEX all_conversations_by_activity ON conversations (last_activity DESC, id DESC)",
    "CREATE INDEX conversations_by_owner ON conversations (owner_id) WHERE temporary = 1",
    """CREATE TABLE messages (
        conversation_id <id> NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
        seq <integer> NOT NULL,
        id <id> NOT NULL UNIQUE,
        run_id TEXT,
        role TEXT NOT NULL,
        sender TEXT NOT NULL,
        sender_name TEXT NOT NULL,
        text TEXT,
        blocks TEXT NOT NULL,
        created_at <integer> NOT NULL,
        PRIMARY KEY (conversation_id, seq)
    ) <table>""",
    "CREATE INDEX messages_for_people ON messages (conversation_id, seq) WHERE text IS NOT NULL",
    """CREATE TABLE runs (
        number <number>,
        id <id> NOT NULL UNIQUE,
        conversation_id <id> NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
        state TEXT NOT NULL,
        fence <integer> NOT NULL,
        lease_owner TEXT NOT NULL,
        lease_until <integer> NOT NULL,
        effect_ahead INTEGER NOT NULL DEFAULT 0,
        message_id TEXT NOT NULL,
        created_at <integer> NOT NULL,
        finished_at <integer>,
        model TEXT NOT NULL DEFAULT '',
        usage TEXT NOT NULL DEFAULT '{}',
        error TEXT,
        code TEXT,
        answer TEXT
    ) <table>""",
    # The database, not a lock in memory, keeps a conversation to one running run.
    "CREATE UNIQUE INDEX one_running_run ON runs (conversation_id) WHERE state = 'running'",
    "CREATE INDEX runs_of_conversation ON runs (conversation_id, number)",
    """CREATE TABLE run_events (
        run_id <id> NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
        seq <integer> NOT NULL,
        name TEXT NOT NULL,
        data TEXT NOT NULL,
        created_at <integer> NOT NULL,
        PRIMARY KEY (run_id, seq)
    ) <by key>""",
    "CREATE INDEX run_events_by_age ON run_events (created_at)",
    """CREATE TABLE idempotency_keys (
        route <id> NOT NULL,
        key <id> NOT NULL,
        digest TEXT NOT NULL,
        subject TEXT NOT NULL,
        conversation_id <id>,
        status <integer>,
        body TEXT,
        created_at <integer> NOT NULL,
        PRIMARY KEY (route, key)
    ) <table>""",
    "CREATE INDEX idempotency_keys_by_age ON idempotency_keys (created_at)",
    "CREATE INDEX idempotency_keys_by_conversation ON idempotency_keys (conversation_id)",
    """CREATE TABLE outbound_messages (
        seq <sequence>,
        id <id> NOT NULL UNIQUE,
        conversation_id <id> NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
        source_id <id> NOT NULL,
        text TEXT NOT NULL,
        sender TEXT NOT NULL,
        created_at <integer> NOT NULL,
        delivered_at <integer>
    ) <table>""",
    "CREATE INDEX outbound_by_source ON outbound_messages (source_id, seq)",
    "CREATE INDEX outbound_by_conversation ON outbound_messages (conversation_id, seq)",
    "CREATE INDEX outbound_by_delivery ON outbound_messages (delivered_at) WHERE delivered_at IS NOT NULL",
    """CREATE TABLE scheduled_tasks (
        number <number>,
        id <id> NOT NULL UNIQUE,
        conversation_id <id> NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
        prompt TEXT NOT NULL,
        schedule_type TEXT NOT NULL,
        schedule_value TEXT NOT NULL,
        timezone TEXT NOT NULL,
        context_mode TEXT NOT NULL,
        catch_up TEXT NOT NULL,
        status TEXT NOT NULL,
        next_run <integer>,
        attempts <integer> NOT NULL DEFAULT 0,
        revision <integer> NOT NULL DEFAULT 0,
        created_at <integer> NOT NULL,
        updated_at <integer> NOT NULL,
        last_run <integer>,
        last_state TEXT,
        served_slot <integer>,
        plan <integer> NOT NULL DEFAULT 0,
        waits INTEGER NOT NULL DEFAULT 0,
        caught_up <integer> NOT NULL DEFAULT 0
    ) <table>""",
    "CREATE INDEX tasks_of_conversation ON scheduled_tasks (conversation_id, number)",
    "CREATE INDEX tasks_by_status ON scheduled_tasks (status, number)",
    # waits: see ``task_rows``. A claim looks at the free ones only, so those that must wait are not looked at
    # again and again.
    """CREATE INDEX tasks_due ON scheduled_tasks (waits, next_run, number)
        WHERE status = 'active' AND next_run IS NOT NULL""",
    "CREATE INDEX tasks_waiting ON scheduled_tasks (conversation_id) WHERE waits = 1",
    """CREATE TABLE task_runs (
        number <number>,
        id <id> NOT NULL UNIQUE,
        task_id <id> NOT NULL REFERENCES scheduled_tasks (id) ON DELETE CASCADE,
        slot TEXT NOT NULL,
        state TEXT NOT NULL,
        attempt <integer> NOT NULL,
        fence <integer> NOT NULL,
        owner TEXT NOT NULL,
        lease_until <integer> NOT NULL,
        plan <integer> NOT NULL,
        started_at <integer> NOT NULL,
        finished_at <integer>,
        run_id TEXT,
        conversation_id <id>,
        result TEXT,
        error TEXT,
        UNIQUE (task_id, slot)
    ) <table>""",
    "CREATE INDEX task_runs_of_task ON task_runs (task_id, number)",
    "CREATE INDEX task_runs_running ON task_runs (lease_until) WHERE state = 'running'",
)

LOGS: Final = (
    # Retention asks whether any log row still needs a temporary conversation.
    "CREATE INDEX task_runs_by_conversation ON task_runs (conversation_id) WHERE conversation_id IS NOT NULL",
    "CREATE INDEX temporary_by_activity ON conversations (last_activity) WHERE temporary = 1",
)

SPENT: Final = """runs <integer> NOT NULL,
        input_tokens <integer> NOT NULL,
        output_tokens <integer> NOT NULL,
        cache_creation_input_tokens <integer> NOT NULL,
        cache_read_input_tokens <integer> NOT NULL,
        unsettled_tokens <integer> NOT NULL,
        microdollars <integer> NOT NULL"""

USAGE_BY_DAY: Final = f"""CREATE TABLE usage_by_day (
        day <id> NOT NULL,
        shard INTEGER NOT NULL,
        {SPENT},
        PRIMARY KEY (day, shard)
    ) <by key>"""
"""A day's total stays when a conversation is deleted: a budget must not come back. In parts, so that hosts
don't wait for each other."""

USAGE: Final = (
    f"""CREATE TABLE usage_by_conversation (
        conversation_id <id> NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
        day <id> NOT NULL,
        {SPENT},
        PRIMARY KEY (conversation_id, day)
    ) <by key>""",
    "CREATE INDEX usage_by_conversation_newest ON usage_by_conversation (day, conversation_id)",
    "ALTER TABLE runs ADD COLUMN reserved_tokens <integer> NOT NULL DEFAULT 0",
    "ALTER TABLE runs ADD COLUMN reserved_microdollars <integer> NOT NULL DEFAULT 0",
)

# How the beginning of a long conversation is sent to the model; the newest row counts.
COMPACTIONS: Final = (
    """CREATE TABLE compactions (
        conversation_id <id> NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
        number <integer> NOT NULL,
        kind TEXT NOT NULL,
        first_seq <integer> NOT NULL,
        through_seq <integer> NOT NULL,
        text TEXT NOT NULL,
        cut_through_seq <integer> NOT NULL,
        cut_chars <integer> NOT NULL,
        thinking_through_seq <integer> NOT NULL,
        model TEXT NOT NULL,
        usage TEXT NOT NULL,
        created_at <integer> NOT NULL,
        archived INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (conversation_id, number)
    ) <table>""",
)

# Who is in which conversation, what came in (the body goes once it is handled), what goes out.
CHANNELS: Final = (
    """CREATE TABLE channel_chats (
        number <number>,
        conversation_id <id> NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
        channel <id> NOT NULL,
        chat_id <id> NOT NULL,
        current INTEGER NOT NULL,
        private INTEGER NOT NULL,
        sender_id TEXT NOT NULL,
        sender_name TEXT NOT NULL,
        UNIQUE (conversation_id, channel, chat_id)
    ) <table>""",
    "CREATE UNIQUE INDEX one_current_conversation ON channel_chats (channel, chat_id) WHERE current = 1",
    "CREATE INDEX conversations_of_chat ON channel_chats (channel, chat_id, number)",
    """CREATE TABLE channel_updates (
        number <sequence>,
        channel <id> NOT NULL,
        update_id <id> NOT NULL,
        chat_id <id> NOT NULL,
        urgent INTEGER NOT NULL,
        body TEXT NOT NULL,
        received_at <integer> NOT NULL,
        run_id TEXT,
        conversation_id <id>,
        draft_id TEXT,
        settled_at <integer>,
        UNIQUE (channel, update_id)
    ) <table>""",
    """CREATE INDEX updates_waiting ON channel_updates (channel, urgent, chat_id, number)
        WHERE settled_at IS NULL""",
    "CREATE INDEX updates_by_end ON channel_updates (settled_at) WHERE settled_at IS NOT NULL",
    """CREATE TABLE channel_deliveries (
        number <sequence>,
        conversation_id <id> NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
        channel <id> NOT NULL,
        chat_id <id> NOT NULL,
        source <id> NOT NULL,
        text TEXT NOT NULL,
        reply_to TEXT,
        draft_id TEXT,
        parts_sent <integer> NOT NULL DEFAULT 0,
        attempts <integer> NOT NULL DEFAULT 0,
        not_before <integer> NOT NULL DEFAULT 0,
        error TEXT,
        untold INTEGER NOT NULL DEFAULT 0,
        created_at <integer> NOT NULL,
        ended_at <integer>,
        UNIQUE (channel, chat_id, source)
    ) <table>""",
    "CREATE INDEX deliveries_waiting ON channel_deliveries (channel, chat_id, number) WHERE ended_at IS NULL",
    "CREATE INDEX deliveries_untold ON channel_deliveries (channel, number) WHERE untold = 1",
    "CREATE INDEX deliveries_of_conversation ON channel_deliveries (conversation_id)",
    "CREATE INDEX deliveries_by_end ON channel_deliveries (ended_at) WHERE ended_at IS NOT NULL",
)

# Tokens of outside agents: the digest alone, so that nobody who reads the database has one.
TOKENS: Final = (
    """CREATE TABLE tokens (
        number <number>,
        id <id> NOT NULL UNIQUE,
        digest <bytes> NOT NULL UNIQUE,
        conversation_id <id> NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
        is_main INTEGER NOT NULL,
        created_at <integer> NOT NULL,
        expires_at <integer>
    ) <table>""",
    "CREATE INDEX tokens_of_conversation ON tokens (conversation_id)",
    """CREATE TABLE tool_pins (
        place <bytes> PRIMARY KEY,
        digest <bytes> NOT NULL,
        seen_at <integer> NOT NULL
    ) <by key>""",
)

# Who wants a run stopped may ask any host; the one that runs it looks.
CANCELLING: Final = (
    "ALTER TABLE runs ADD COLUMN cancel_asked INTEGER NOT NULL DEFAULT 0",
    "CREATE INDEX runs_to_cancel ON runs (lease_owner) WHERE state = 'running' AND cancel_asked = 1",
)

MESSAGES_THAT_STAND: Final = (
    "ALTER TABLE messages ADD COLUMN refused INTEGER NOT NULL DEFAULT 0",
    "UPDATE messages SET refused = 1 WHERE run_id IN (SELECT id FROM runs WHERE code = 'refused')",
    "ALTER TABLE compactions ADD COLUMN message_seq INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE compactions ADD COLUMN message_chars INTEGER NOT NULL DEFAULT 0",
)

# Tasks with an end, with an answer for people, and the tree of those that a task's runs made.
TASK_BOUNDS: Final = (
    "ALTER TABLE scheduled_tasks ADD COLUMN deliver TEXT NOT NULL DEFAULT 'answer'",
    "ALTER TABLE scheduled_tasks ADD COLUMN ends_at <integer>",
    "ALTER TABLE scheduled_tasks ADD COLUMN max_runs <integer>",
    "ALTER TABLE scheduled_tasks ADD COLUMN runs_begun <integer> NOT NULL DEFAULT 0",
    "ALTER TABLE scheduled_tasks ADD COLUMN tree_id <id>",
    "ALTER TABLE scheduled_tasks ADD COLUMN depth <integer> NOT NULL DEFAULT 0",
    "ALTER TABLE scheduled_tasks ADD COLUMN told_failing INTEGER NOT NULL DEFAULT 0",
    "CREATE INDEX tasks_of_tree ON scheduled_tasks (tree_id) WHERE tree_id IS NOT NULL",
)

# Kinds of blocks that the model's API refused, and up to which message they are left out (JSON).
LEFT_OUT: Final = ("ALTER TABLE compactions ADD COLUMN left_out TEXT NOT NULL DEFAULT '{}'",)

SAID: Final = "said:"
"""Begins the source of what ``send_message`` said; its id follows."""

# What the triggers do; each engine makes triggers in its own way.
ON_SAID: Final = f"""INSERT INTO channel_deliveries
            (conversation_id, channel, chat_id, source, text, created_at)
            SELECT conversation_id, channel, chat_id, '{SAID}' || new.id, new.text, new.created_at
            FROM channel_chats WHERE conversation_id = new.conversation_id"""
"""In the transaction of whoever speaks: no message that chats never hear of."""
ON_RUN_ENDED: Final = (
    "UPDATE scheduled_tasks SET waits = 0 WHERE conversation_id = new.conversation_id AND waits = 1"
)
ON_TASK_DELETED: Final = """UPDATE runs SET cancel_asked = 1 WHERE state = 'running' AND id IN
            (SELECT run_id FROM task_runs WHERE task_id = old.id AND state = 'running')"""
"""Whoever deletes a task ends its run, whichever process it runs in."""

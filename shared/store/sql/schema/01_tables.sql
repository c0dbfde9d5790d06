CREATE TABLE conversations (
        id <id> PRIMARY KEY,
        session_id TEXT NOT NULL,
        owner_id <id> NOT NULL,
        temporary INTEGER NOT NULL DEFAULT 0,
        created_at <integer> NOT NULL,
        last_activity <integer> NOT NULL,
        message_count <integer> NOT NULL DEFAULT 0,
        next_seq <integer> NOT NULL DEFAULT 1,
        fence <integer> NOT NULL DEFAULT 0
    ) <table>;

CREATE INDEX conversations_by_activity ON conversations (last_activity DESC, id DESC)
        WHERE temporary = 0;

CREATE INDEX all_conversations_by_activity ON conversations (last_activity DESC, id DESC);
CREATE INDEX conversations_by_owner ON conversations (owner_id) WHERE temporary = 1;

CREATE TABLE messages (
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
    ) <table>;

CREATE INDEX messages_for_people ON messages (conversation_id, seq) WHERE text IS NOT NULL;

CREATE TABLE runs (
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
    ) <table>;

-- The database, not a lock in memory, keeps a conversation to one running run.
CREATE UNIQUE INDEX one_running_run ON runs (conversation_id) WHERE state = 'running';

CREATE INDEX runs_of_conversation ON runs (conversation_id, number);

CREATE TABLE run_events (
        run_id <id> NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
        seq <integer> NOT NULL,
        name TEXT NOT NULL,
        data TEXT NOT NULL,
        created_at <integer> NOT NULL,
        PRIMARY KEY (run_id, seq)
    ) <by key>;

CREATE INDEX run_events_by_age ON run_events (created_at);

CREATE TABLE idempotency_keys (
        route <id> NOT NULL,
        key <id> NOT NULL,
        digest TEXT NOT NULL,
        subject TEXT NOT NULL,
        conversation_id <id>,
        status <integer>,
        body TEXT,
        created_at <integer> NOT NULL,
        PRIMARY KEY (route, key)
    ) <table>;

CREATE INDEX idempotency_keys_by_age ON idempotency_keys (created_at);
CREATE INDEX idempotency_keys_by_conversation ON idempotency_keys (conversation_id);

CREATE TABLE outbound_messages (
        seq <sequence>,
        id <id> NOT NULL UNIQUE,
        conversation_id <id> NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
        source_id <id> NOT NULL,
        text TEXT NOT NULL,
        sender TEXT NOT NULL,
        created_at <integer> NOT NULL,
        delivered_at <integer>
    ) <table>;

CREATE INDEX outbound_by_source ON outbound_messages (source_id, seq);
CREATE INDEX outbound_by_conversation ON outbound_messages (conversation_id, seq);
CREATE INDEX outbound_by_delivery ON outbound_messages (delivered_at) WHERE delivered_at IS NOT NULL;

CREATE TABLE scheduled_tasks (
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
    ) <table>;

CREATE INDEX tasks_of_conversation ON scheduled_tasks (conversation_id, number);
CREATE INDEX tasks_by_status ON scheduled_tasks (status, number);

-- waits: see ``task_rows``. A claim looks at the free ones only, so those that must wait are not looked at
-- again and again.
CREATE INDEX tasks_due ON scheduled_tasks (waits, next_run, number)
        WHERE status = 'active' AND next_run IS NOT NULL;

CREATE INDEX tasks_waiting ON scheduled_tasks (conversation_id) WHERE waits = 1;

CREATE TABLE task_runs (
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
    ) <table>;

CREATE INDEX task_runs_of_task ON task_runs (task_id, number);
CREATE INDEX task_runs_running ON task_runs (lease_until) WHERE state = 'running';

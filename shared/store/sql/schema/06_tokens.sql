-- Of outside agents: the digest alone, so that nobody who reads the database has one.
CREATE TABLE tokens (
        number <number>,
        id <id> NOT NULL UNIQUE,
        digest <bytes> NOT NULL UNIQUE,
        conversation_id <id> NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
        is_main INTEGER NOT NULL,
        created_at <integer> NOT NULL,
        expires_at <integer>
    ) <table>;

CREATE INDEX tokens_of_conversation ON tokens (conversation_id);

CREATE TABLE tool_pins (
        place <bytes> PRIMARY KEY,
        digest <bytes> NOT NULL,
        seen_at <integer> NOT NULL
    ) <by key>;

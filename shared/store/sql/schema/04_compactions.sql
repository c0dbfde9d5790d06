-- How the beginning of a long conversation is sent to the model; the newest row counts.
CREATE TABLE compactions (
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
    ) <table>;

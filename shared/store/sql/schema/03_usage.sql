CREATE TABLE usage_by_conversation (
        conversation_id <id> NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
        day <id> NOT NULL,
        runs <integer> NOT NULL,
        input_tokens <integer> NOT NULL,
        output_tokens <integer> NOT NULL,
        cache_creation_input_tokens <integer> NOT NULL,
        cache_read_input_tokens <integer> NOT NULL,
        unsettled_tokens <integer> NOT NULL,
        microdollars <integer> NOT NULL,
        PRIMARY KEY (conversation_id, day)
    ) <by key>;

CREATE INDEX usage_by_conversation_newest ON usage_by_conversation (day, conversation_id);
ALTER TABLE runs ADD COLUMN reserved_tokens <integer> NOT NULL DEFAULT 0;
ALTER TABLE runs ADD COLUMN reserved_microdollars <integer> NOT NULL DEFAULT 0;

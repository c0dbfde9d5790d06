-- A day's total stays when a conversation is deleted: a budget must not come back. In parts, so that hosts
-- don't wait for each other.
CREATE TABLE usage_by_day (
        day <id> NOT NULL,
        shard INTEGER NOT NULL,
        runs <integer> NOT NULL,
        input_tokens <integer> NOT NULL,
        output_tokens <integer> NOT NULL,
        cache_creation_input_tokens <integer> NOT NULL,
        cache_read_input_tokens <integer> NOT NULL,
        unsettled_tokens <integer> NOT NULL,
        microdollars <integer> NOT NULL,
        PRIMARY KEY (day, shard)
    ) <by key>;

CREATE TABLE usage_by_day (day TEXT PRIMARY KEY, runs <integer> NOT NULL,
        input_tokens <integer> NOT NULL,
        output_tokens <integer> NOT NULL,
        cache_creation_input_tokens <integer> NOT NULL,
        cache_read_input_tokens <integer> NOT NULL,
        unsettled_tokens <integer> NOT NULL,
        microdollars <integer> NOT NULL) <by key>;

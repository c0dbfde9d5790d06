-- Which run each response of the Responses door is, and what it was asked (JSON).
CREATE TABLE responses (
            number <number>,
            id <id> NOT NULL UNIQUE,
            conversation_id <id> NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
            principal_id <id> NOT NULL,
            run_id <id> NOT NULL,
            previous_id <id>,
            made_conversation INTEGER NOT NULL,
            background INTEGER NOT NULL,
            asked TEXT NOT NULL,
            created_at <integer> NOT NULL
        ) <table>;

CREATE INDEX responses_of_conversation ON responses (conversation_id);
CREATE INDEX responses_by_age ON responses (created_at);

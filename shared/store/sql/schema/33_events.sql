-- What webhooks are told is one row a turn, whoever hears of it; its deliveries are made beside turns.
-- Without an index: a turn then writes one page more, and the rows are soon gone.
CREATE TABLE webhook_events (
        number <number>,
        principal_id <id> NOT NULL,
        conversation_id <id> NOT NULL,
        run_id <id>,
        root_id <id>,
        type TEXT NOT NULL,
        data TEXT,
        created_at <integer> NOT NULL
    ) <table>;

CREATE INDEX webhooks_of_principals ON webhooks (principal_id, number)
        WHERE subject IN (principal_id, '*');

DROP INDEX webhooks_of_principal;

-- Who did what.
CREATE TABLE audit (
            number <number>,
            created_at <integer> NOT NULL,
            action TEXT NOT NULL,
            principal_id <id> NOT NULL,
            subject <id> NOT NULL,
            actor TEXT NOT NULL
        ) <table>;

CREATE INDEX audit_of_principal ON audit (principal_id, number);
CREATE INDEX audit_by_age ON audit (created_at);

-- The operator is as old as its first conversation.
UPDATE principals SET created_at = (SELECT coalesce(min(created_at), <now>)
            FROM conversations WHERE principal_id = 'operator') WHERE id = 'operator';

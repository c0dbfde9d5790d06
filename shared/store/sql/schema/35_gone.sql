-- Conversations that were deleted, until what they had beside their rows is gone too. Whoever deletes one may be a
-- tool server, which reaches no files, and may end before they are removed.
CREATE TABLE gone_conversations (
        id <id> PRIMARY KEY,
        principal_id <id> NOT NULL
    ) <table>;

CREATE TRIGGER gone AFTER DELETE ON conversations WHEN old.owner_id = old.id BEGIN
    INSERT INTO gone_conversations (id, principal_id) VALUES (old.id, old.principal_id) ON CONFLICT DO NOTHING;
    END;

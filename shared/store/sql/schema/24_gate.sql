-- Which subagent's call waits, how far it came (JSON), and the messages of chats that show the request.
ALTER TABLE approvals ADD COLUMN subagent TEXT NOT NULL DEFAULT '';

ALTER TABLE approvals ADD COLUMN shown TEXT;
CREATE INDEX approvals_shown ON approvals (number) WHERE shown IS NOT NULL;
CREATE INDEX approvals_by_end ON approvals (ended_at) WHERE ended_at IS NOT NULL;

CREATE TABLE stopped_subagents (
            conversation_id <id> NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
            call_id <id> NOT NULL,
            state TEXT NOT NULL,
            PRIMARY KEY (conversation_id, call_id)
        ) <table>;

-- Calls that wait for a person; what a run that waits was asked with, and since when it can go on.
CREATE TABLE approvals (
            number <number>,
            id <id> NOT NULL UNIQUE,
            conversation_id <id> NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
            run_id <id> NOT NULL,
            kind TEXT NOT NULL,
            call_id TEXT NOT NULL,
            tool TEXT NOT NULL,
            input TEXT NOT NULL,
            input_sha256 TEXT NOT NULL,
            base_sha256 TEXT,
            reason TEXT NOT NULL,
            status TEXT NOT NULL,
            remembered INTEGER NOT NULL DEFAULT 0,
            created_at <integer> NOT NULL,
            expires_at <integer>,
            decided_at <integer>,
            decided_by TEXT,
            message TEXT,
            ended_at <integer>
        ) <table>;

CREATE INDEX approvals_open ON approvals (conversation_id) WHERE ended_at IS NULL;
CREATE INDEX approvals_due ON approvals (expires_at) WHERE status = 'pending';
CREATE INDEX approvals_of_conversation ON approvals (conversation_id, number);
ALTER TABLE runs ADD COLUMN asked TEXT;
ALTER TABLE runs ADD COLUMN ready_at <integer>;
CREATE INDEX runs_ready ON runs (ready_at) WHERE ready_at IS NOT NULL;

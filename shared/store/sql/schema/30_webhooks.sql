-- ``subject``: whose events it hears: a principal's, * for everybody's, or of one chain, by its first run.
CREATE TABLE webhooks (
        number <number>,
        id <id> NOT NULL UNIQUE,
        principal_id <id> NOT NULL,
        subject <id> NOT NULL,
        url TEXT NOT NULL,
        events TEXT NOT NULL,
        content INTEGER NOT NULL,
        enabled INTEGER NOT NULL DEFAULT 1,
        disabled_reason TEXT,
        secret <bytes> NOT NULL,
        old_secret <bytes>,
        old_secret_until <integer>,
        created_at <integer> NOT NULL,
        failing_since <integer>,
        last_error TEXT
    ) <table>;

CREATE INDEX webhooks_by_subject ON webhooks (subject);
CREATE INDEX webhooks_by_age ON webhooks (created_at);
CREATE INDEX webhooks_of_principal ON webhooks (principal_id, number);

CREATE TABLE webhook_deliveries (
        number <sequence>,
        id <id> NOT NULL UNIQUE,
        webhook_id <id> NOT NULL,
        principal_id <id> NOT NULL,
        conversation_id <id>,
        run_id <id>,
        type TEXT NOT NULL,
        data TEXT,
        created_at <integer> NOT NULL,
        began_at <integer> NOT NULL,
        status TEXT NOT NULL DEFAULT 'waiting',
        attempts <integer> NOT NULL DEFAULT 0,
        not_before <integer> NOT NULL DEFAULT 0,
        owner TEXT NOT NULL DEFAULT '',
        lease_until <integer> NOT NULL DEFAULT 0,
        error TEXT,
        ended_at <integer>
    ) <table>;

CREATE INDEX deliveries_due ON webhook_deliveries (not_before) WHERE status = 'waiting';

CREATE INDEX deliveries_in_order ON webhook_deliveries (webhook_id, conversation_id, number)
        WHERE status = 'waiting';

CREATE INDEX deliveries_of_webhook ON webhook_deliveries (webhook_id, number);
CREATE INDEX deliveries_about ON webhook_deliveries (conversation_id);
CREATE INDEX deliveries_ended ON webhook_deliveries (ended_at) WHERE ended_at IS NOT NULL;

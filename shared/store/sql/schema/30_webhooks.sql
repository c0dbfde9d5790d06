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

CREATE TRIGGER run_told AFTER UPDATE OF state, code, again ON runs WHEN new.state <> 'running' BEGIN
    INSERT INTO webhook_deliveries
        (id, webhook_id, principal_id, conversation_id, run_id, type, data, created_at, began_at)
    SELECT 'evt-' || <random>, w.id, c.principal_id, c.id, new.id,
        CASE new.state WHEN 'paused' THEN 'run.paused' ELSE 'run.ended' END,
        new.answer,
        new.finished_at, new.finished_at
    FROM conversations AS c JOIN webhooks AS w
        ON w.subject IN (c.principal_id, '*', coalesce(new.root_id, new.id))
    WHERE c.id = new.conversation_id AND w.enabled = 1
    AND w.events LIKE '% ' || CASE new.state WHEN 'paused' THEN 'run.paused' ELSE 'run.ended' END || ' %'
    AND NOT (coalesce(new.code, '') = 'retryable' AND new.again IS NOT NULL)
    AND (old.state <> new.state OR coalesce(old.code, '') <> coalesce(new.code, '') OR (
        old.again IS NOT NULL AND new.again IS NULL
        AND NOT EXISTS (SELECT 1 FROM runs AS n WHERE n.previous_id = new.id)))
    AND NOT (new.code IN ('retryable', 'shutdown') AND new.previous_id IS NOT NULL
        AND (new.effect_ahead & 1) = 0 AND EXISTS (
            SELECT 1 FROM approvals AS a
            WHERE a.conversation_id = new.conversation_id AND a.ended_at IS NULL AND a.kind <> 'budget'
        ));
    END;

CREATE TRIGGER request_told AFTER INSERT ON approvals WHEN new.status = 'pending' BEGIN
    INSERT INTO webhook_deliveries
        (id, webhook_id, principal_id, conversation_id, run_id, type, data, created_at, began_at)
    SELECT 'evt-' || <random>, w.id, c.principal_id, c.id, new.run_id,
        'approval.requested',
        <object>(
        'conversation_id', new.conversation_id, 'run_id', new.run_id,
        'root_run_id', (SELECT coalesce(root_id, id) FROM runs WHERE id = new.run_id),
        'status', new.status, 'request', <object>(
            'id', new.id, 'kind', new.kind, 'tool', new.tool, 'input', new.input,
            'input_sha256', new.input_sha256, 'reason', new.reason, 'expires_at', new.expires_at)),
        new.created_at, new.created_at
    FROM conversations AS c JOIN webhooks AS w
        ON w.subject IN (c.principal_id, '*', (SELECT coalesce(root_id, id) FROM runs WHERE id = new.run_id))
    WHERE c.id = new.conversation_id AND w.enabled = 1
    AND w.events LIKE '% ' || 'approval.requested' || ' %'
    AND true;
    END;

CREATE TRIGGER answer_told AFTER UPDATE OF status ON approvals WHEN old.status = 'pending' BEGIN
    INSERT INTO webhook_deliveries
        (id, webhook_id, principal_id, conversation_id, run_id, type, data, created_at, began_at)
    SELECT 'evt-' || <random>, w.id, c.principal_id, c.id, new.run_id,
        'approval.resolved',
        <object>(
        'conversation_id', new.conversation_id, 'run_id', new.run_id,
        'root_run_id', (SELECT coalesce(root_id, id) FROM runs WHERE id = new.run_id),
        'status', new.status, 'request', <object>(
            'id', new.id, 'kind', new.kind, 'tool', new.tool, 'input', new.input,
            'input_sha256', new.input_sha256, 'reason', new.reason, 'expires_at', new.expires_at)),
        coalesce(new.decided_at, new.ended_at), coalesce(new.decided_at, new.ended_at)
    FROM conversations AS c JOIN webhooks AS w
        ON w.subject IN (c.principal_id, '*', (SELECT coalesce(root_id, id) FROM runs WHERE id = new.run_id))
    WHERE c.id = new.conversation_id AND w.enabled = 1
    AND w.events LIKE '% ' || 'approval.resolved' || ' %'
    AND new.status <> 'pending';
    END;

CREATE TRIGGER message_told AFTER INSERT ON outbound_messages WHEN new.delivered_at IS NULL BEGIN
    INSERT INTO webhook_deliveries
        (id, webhook_id, principal_id, conversation_id, run_id, type, data, created_at, began_at)
    SELECT 'evt-' || <random>, w.id, c.principal_id, c.id, NULL,
        'message.created',
        <object>(
        'id', new.id, 'conversation_id', new.conversation_id, 'source_id', new.source_id,
        'text', new.text, 'sender', new.sender, 'created_at', new.created_at),
        new.created_at, new.created_at
    FROM conversations AS c JOIN webhooks AS w
        ON w.subject IN (c.principal_id, '*', '')
    WHERE c.id = new.conversation_id AND w.enabled = 1
    AND w.events LIKE '% ' || 'message.created' || ' %'
    AND true;
    END;

CREATE TRIGGER task_told AFTER UPDATE OF finished_at ON task_runs WHEN new.finished_at IS NOT NULL BEGIN
    INSERT INTO webhook_deliveries
        (id, webhook_id, principal_id, conversation_id, run_id, type, data, created_at, began_at)
    SELECT 'evt-' || <random>, w.id, c.principal_id, c.id, new.run_id,
        'task.ended',
        <object>(
        'task_id', new.task_id, 'conversation_id', coalesce(
            new.conversation_id, (SELECT conversation_id FROM scheduled_tasks WHERE id = new.task_id)),
        'run_id', new.run_id, 'status', new.state, 'result', new.result, 'output', new.output,
        'error', new.error),
        new.finished_at, new.finished_at
    FROM conversations AS c JOIN webhooks AS w
        ON w.subject IN (c.principal_id, '*', '')
    WHERE c.id = (SELECT conversation_id FROM scheduled_tasks WHERE id = new.task_id) AND w.enabled = 1
    AND w.events LIKE '% ' || 'task.ended' || ' %'
    AND old.finished_at IS NULL;
    END;

CREATE TRIGGER deletion_told AFTER DELETE ON conversations WHEN old.id <> '' BEGIN
    UPDATE webhook_deliveries SET
    type = CASE WHEN status IN ('waiting', 'held') THEN 'conversation.deleted' ELSE type END,
    data = CASE WHEN status IN ('waiting', 'held') THEN '{}' END WHERE conversation_id = old.id;
    END;

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

CREATE TRIGGER run_told AFTER UPDATE OF state, code, again ON runs WHEN new.state <> 'running' BEGIN
    INSERT INTO webhook_events (principal_id, conversation_id, run_id, root_id, type, data, created_at)
    SELECT c.principal_id, c.id, new.id, coalesce(new.root_id, new.id),
        CASE new.state WHEN 'paused' THEN 'run.paused' ELSE 'run.ended' END,
        new.answer,
        new.finished_at
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
        )) LIMIT 1;
    END;

CREATE TRIGGER request_told AFTER INSERT ON approvals WHEN new.status = 'pending' BEGIN
    INSERT INTO webhook_events (principal_id, conversation_id, run_id, root_id, type, data, created_at)
    SELECT c.principal_id, c.id, new.run_id, (SELECT coalesce(root_id, id) FROM runs WHERE id = new.run_id),
        'approval.requested',
        <object>(
        'conversation_id', new.conversation_id, 'run_id', new.run_id,
        'root_run_id', (SELECT coalesce(root_id, id) FROM runs WHERE id = new.run_id),
        'status', new.status, 'request', <object>(
            'id', new.id, 'kind', new.kind, 'tool', new.tool, 'input', new.input,
            'input_sha256', new.input_sha256, 'reason', new.reason, 'expires_at', new.expires_at)),
        new.created_at
    FROM conversations AS c JOIN webhooks AS w
        ON w.subject IN (c.principal_id, '*', (SELECT coalesce(root_id, id) FROM runs WHERE id = new.run_id))
    WHERE c.id = new.conversation_id AND w.enabled = 1
    AND w.events LIKE '% ' || 'approval.requested' || ' %'
    AND true LIMIT 1;
    END;

CREATE TRIGGER answer_told AFTER UPDATE OF status ON approvals WHEN old.status = 'pending' BEGIN
    INSERT INTO webhook_events (principal_id, conversation_id, run_id, root_id, type, data, created_at)
    SELECT c.principal_id, c.id, new.run_id, (SELECT coalesce(root_id, id) FROM runs WHERE id = new.run_id),
        'approval.resolved',
        <object>(
        'conversation_id', new.conversation_id, 'run_id', new.run_id,
        'root_run_id', (SELECT coalesce(root_id, id) FROM runs WHERE id = new.run_id),
        'status', new.status, 'request', <object>(
            'id', new.id, 'kind', new.kind, 'tool', new.tool, 'input', new.input,
            'input_sha256', new.input_sha256, 'reason', new.reason, 'expires_at', new.expires_at)),
        coalesce(new.decided_at, new.ended_at)
    FROM conversations AS c JOIN webhooks AS w
        ON w.subject IN (c.principal_id, '*', (SELECT coalesce(root_id, id) FROM runs WHERE id = new.run_id))
    WHERE c.id = new.conversation_id AND w.enabled = 1
    AND w.events LIKE '% ' || 'approval.resolved' || ' %'
    AND new.status <> 'pending' LIMIT 1;
    END;

CREATE TRIGGER message_told AFTER INSERT ON outbound_messages WHEN new.delivered_at IS NULL BEGIN
    INSERT INTO webhook_events (principal_id, conversation_id, run_id, root_id, type, data, created_at)
    SELECT c.principal_id, c.id, NULL, '',
        'message.created',
        <object>(
        'id', new.id, 'conversation_id', new.conversation_id, 'source_id', new.source_id,
        'text', new.text, 'sender', new.sender, 'created_at', new.created_at),
        new.created_at
    FROM conversations AS c JOIN webhooks AS w
        ON w.subject IN (c.principal_id, '*', '')
    WHERE c.id = new.conversation_id AND w.enabled = 1
    AND w.events LIKE '% ' || 'message.created' || ' %'
    AND true LIMIT 1;
    END;

CREATE TRIGGER task_told AFTER UPDATE OF finished_at ON task_runs WHEN new.finished_at IS NOT NULL BEGIN
    INSERT INTO webhook_events (principal_id, conversation_id, run_id, root_id, type, data, created_at)
    SELECT c.principal_id, c.id, new.run_id, '',
        'task.ended',
        <object>(
        'task_id', new.task_id, 'conversation_id', coalesce(
            new.conversation_id, (SELECT conversation_id FROM scheduled_tasks WHERE id = new.task_id)),
        'run_id', new.run_id, 'status', new.state, 'result', new.result, 'output', new.output,
        'error', new.error),
        new.finished_at
    FROM conversations AS c JOIN webhooks AS w
        ON w.subject IN (c.principal_id, '*', '')
    WHERE c.id = (SELECT conversation_id FROM scheduled_tasks WHERE id = new.task_id) AND w.enabled = 1
    AND w.events LIKE '% ' || 'task.ended' || ' %'
    AND old.finished_at IS NULL LIMIT 1;
    END;

CREATE TRIGGER deletion_told AFTER DELETE ON conversations WHEN old.id <> '' BEGIN
    UPDATE webhook_events SET data = NULL WHERE conversation_id = old.id;
    UPDATE webhook_deliveries SET
    type = CASE WHEN status IN ('waiting', 'held') THEN 'conversation.deleted' ELSE type END,
    data = CASE WHEN status IN ('waiting', 'held') THEN '{}' END WHERE conversation_id = old.id;
    END;

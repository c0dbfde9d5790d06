CREATE TRIGGER event_told AFTER DELETE ON webhook_events BEGIN
    INSERT INTO webhook_deliveries
        (id, webhook_id, principal_id, conversation_id, run_id, type, data, created_at, began_at)
    SELECT 'evt-' || printf('%012x', old.created_at) || substr(<random>, 13), w.id, old.principal_id,
        old.conversation_id, old.run_id,
        CASE WHEN old.data IS NULL THEN 'conversation.deleted' ELSE old.type END,
        coalesce(old.data, '{}'), old.created_at, old.created_at
    FROM webhooks AS w WHERE w.subject IN (old.principal_id, '*', old.root_id) AND w.enabled = 1
    AND w.events LIKE '% ' || old.type || ' %' ORDER BY old.number, w.number;
    END;

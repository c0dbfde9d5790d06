CREATE OR REPLACE FUNCTION event_told() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN
    INSERT INTO webhook_deliveries
        (id, webhook_id, principal_id, conversation_id, run_id, type, data, created_at, began_at)
    SELECT 'evt-' || lpad(to_hex(gone.created_at), 12, '0') || substr(<random>, 13), w.id, gone.principal_id,
        gone.conversation_id, gone.run_id,
        CASE WHEN gone.data IS NULL THEN 'conversation.deleted' ELSE gone.type END,
        coalesce(gone.data, '{}'), gone.created_at, gone.created_at
    FROM gone, webhooks AS w WHERE w.subject IN (gone.principal_id, '*', gone.root_id) AND w.enabled = 1
    AND w.events LIKE '% ' || gone.type || ' %' ORDER BY gone.number, w.number;
    RETURN NULL; END $$;

CREATE TRIGGER event_told AFTER DELETE ON webhook_events REFERENCING OLD TABLE AS gone
        FOR EACH STATEMENT EXECUTE FUNCTION event_told();

-- Keeps them from finding tables of whoever calls them.
DO $$ DECLARE name text; BEGIN
        FOREACH name IN ARRAY ARRAY['run_told()', 'request_told()', 'answer_told()', 'message_told()',
            'task_told()', 'deletion_told()', 'event_told()'] LOOP
            EXECUTE format('ALTER FUNCTION %s SET search_path = %I, pg_temp', name, current_schema());
        END LOOP; END $$;

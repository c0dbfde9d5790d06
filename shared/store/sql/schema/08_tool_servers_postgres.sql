CREATE INDEX runs_by_lease ON runs (lease_until) WHERE state = 'running';

CREATE TABLE counters (
        name TEXT NOT NULL, shard INTEGER NOT NULL, value BIGINT NOT NULL, PRIMARY KEY (name, shard)
    );

-- In the transaction of whoever speaks: no message that chats never hear of.
CREATE FUNCTION said() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN
        INSERT INTO channel_deliveries
            (conversation_id, channel, chat_id, source, text, created_at)
            SELECT conversation_id, channel, chat_id, 'said:' || new.id, new.text, new.created_at
            FROM channel_chats WHERE conversation_id = new.conversation_id;
        RETURN NULL; END $$;

CREATE TRIGGER said AFTER INSERT ON outbound_messages FOR EACH ROW EXECUTE FUNCTION said();

CREATE FUNCTION run_ended() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        UPDATE scheduled_tasks SET waits = 0 WHERE conversation_id = new.conversation_id AND waits = 1;
        RETURN NULL; END $$;

CREATE TRIGGER run_ended AFTER UPDATE OF state ON runs FOR EACH ROW
        WHEN (old.state = 'running' AND new.state <> 'running') EXECUTE FUNCTION run_ended();

CREATE FUNCTION counted() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN
        INSERT INTO counters AS c VALUES (tg_argv[0], pg_backend_pid() % 32, tg_argv[1]::bigint)
            ON CONFLICT (name, shard) DO UPDATE SET value = c.value + excluded.value;
        RETURN NULL; END $$;

CREATE TRIGGER conversation_added AFTER INSERT ON conversations FOR EACH ROW
        WHEN (new.temporary = 0) EXECUTE FUNCTION counted('conversations', '1');

CREATE TRIGGER conversation_removed AFTER DELETE ON conversations FOR EACH ROW
        WHEN (old.temporary = 0) EXECUTE FUNCTION counted('conversations', '-1');

CREATE TRIGGER task_added AFTER INSERT ON scheduled_tasks FOR EACH ROW
        EXECUTE FUNCTION counted('tasks', '1');

CREATE TRIGGER task_removed AFTER DELETE ON scheduled_tasks FOR EACH ROW
        EXECUTE FUNCTION counted('tasks', '-1');

CREATE TABLE tool_key (one INTEGER PRIMARY KEY CHECK (one = 1), inner_pad BYTEA, outer_pad BYTEA);

-- m.<signature>.<conversation> for the main conversation, o.… for any other; NULL unless it is genuine.
CREATE FUNCTION tool_token() RETURNS text LANGUAGE plpgsql STABLE SECURITY DEFINER AS $$
        DECLARE
            token text := current_setting('picoclaw.token', true);
            said text := substr(token, 1, 2) || substr(token, 68);
            signature text;
        BEGIN
            SELECT encode(sha256(outer_pad || sha256(inner_pad || convert_to(said, 'UTF8'))), 'hex')
                INTO signature FROM tool_key;
            IF signature = substr(token, 3, 64) THEN RETURN said; END IF;
            RETURN NULL;
        END $$;

CREATE FUNCTION tool_conversation() RETURNS text LANGUAGE sql STABLE
        AS $$ SELECT substr(tool_token(), 3) $$;

CREATE FUNCTION tool_is_main() RETURNS boolean LANGUAGE sql STABLE
        AS $$ SELECT coalesce(substr(tool_token(), 1, 2) = 'm.', false) $$;

-- What an isolated run does, it does for the conversation that owns it.
CREATE FUNCTION tool_owner() RETURNS text LANGUAGE plpgsql STABLE SECURITY DEFINER AS $$
        DECLARE
            own text := tool_conversation();
        BEGIN
            RETURN coalesce((SELECT owner_id FROM conversations WHERE id = own), own);
        END $$;

ALTER TABLE conversations ENABLE ROW LEVEL SECURITY;
ALTER TABLE outbound_messages ENABLE ROW LEVEL SECURITY;
ALTER TABLE scheduled_tasks ENABLE ROW LEVEL SECURITY;
ALTER TABLE task_runs ENABLE ROW LEVEL SECURITY;
ALTER TABLE runs ENABLE ROW LEVEL SECURITY;

-- Asked for once in a statement, not once a row: the sub-select makes it a constant of the plan.
CREATE POLICY tool_sees ON conversations FOR SELECT USING (
        id = (SELECT tool_conversation()) OR id = (SELECT tool_owner()) OR (SELECT tool_is_main()));

CREATE POLICY tool_makes ON conversations FOR INSERT WITH CHECK (
        id = (SELECT tool_conversation()) AND owner_id = id AND temporary = 0);

CREATE POLICY tool_removes ON conversations FOR DELETE
        USING (temporary = 1 AND (SELECT tool_is_main()));

CREATE POLICY tool_hears ON outbound_messages FOR SELECT
        USING (source_id = (SELECT tool_conversation()));

CREATE POLICY tool_says ON outbound_messages FOR INSERT WITH CHECK (
        source_id = (SELECT tool_conversation())
        AND (conversation_id = (SELECT tool_owner()) OR (SELECT tool_is_main())));

CREATE POLICY tool_tasks ON scheduled_tasks
        USING (conversation_id = (SELECT tool_owner()) OR (SELECT tool_is_main()));

CREATE POLICY tool_logs ON task_runs FOR SELECT USING ((SELECT tool_is_main()) OR EXISTS (
        SELECT 1 FROM scheduled_tasks AS t
        WHERE t.id = task_id AND t.conversation_id = (SELECT tool_owner())));

CREATE POLICY tool_runs ON runs FOR SELECT USING (
        conversation_id = (SELECT tool_conversation()) OR conversation_id = (SELECT tool_owner())
        OR (SELECT tool_is_main()));

-- Keeps them from finding tables of whoever calls them.
DO $$ DECLARE name text; BEGIN
        FOREACH name IN ARRAY ARRAY['tool_token()', 'tool_conversation()', 'tool_owner()',
            'tool_is_main()', 'counted()', 'said()'] LOOP
            EXECUTE format('ALTER FUNCTION %s SET search_path = %I, pg_temp', name, current_schema());
        END LOOP; END $$;

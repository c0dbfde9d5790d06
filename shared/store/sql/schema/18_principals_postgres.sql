-- What tool servers of principals reach. Such a server's token names its principal too:
-- p.<signature>.<principal>/<conversation> for its main conversation, q.… for any other.
CREATE FUNCTION principal_lives(wanted text) RETURNS boolean LANGUAGE plpgsql VOLATILE SECURITY DEFINER
        AS $$ BEGIN
            PERFORM 1 FROM principals WHERE id = wanted AND status = 'active' FOR SHARE;
            RETURN FOUND;
        END $$;

CREATE OR REPLACE FUNCTION token_lives(wanted text, moment bigint) RETURNS boolean
        LANGUAGE plpgsql VOLATILE SECURITY DEFINER AS $$ DECLARE
            whose text := (SELECT principal_id FROM tokens
                WHERE id = wanted AND (expires_at IS NULL OR expires_at > moment) FOR KEY SHARE);
        BEGIN
            RETURN whose IS NOT NULL AND (whose = 'operator' OR principal_lives(whose));
        END $$;

CREATE OR REPLACE FUNCTION tool_conversation() RETURNS text LANGUAGE sql STABLE AS $$
        SELECT CASE WHEN tool_token() ~ '^[pq]' THEN substr(tool_token(), strpos(tool_token(), '/') + 1)
            ELSE substr(tool_token(), 3) END $$;

CREATE FUNCTION tool_principal() RETURNS text LANGUAGE sql STABLE AS $$
        SELECT CASE WHEN tool_token() ~ '^[pq]' THEN split_part(substr(tool_token(), 3), '/', 1)
            WHEN tool_token() IS NOT NULL THEN 'operator' END $$;

CREATE FUNCTION tool_is_main_of() RETURNS text LANGUAGE sql STABLE
        AS $$ SELECT CASE WHEN tool_token() ~ '^p' THEN tool_principal() END $$;

DO $$ DECLARE name text; BEGIN
        FOREACH name IN ARRAY ARRAY['principal_lives(text)', 'token_lives(text, bigint)',
            'tool_conversation()', 'tool_principal()', 'tool_is_main_of()'] LOOP
            EXECUTE format('ALTER FUNCTION %s SET search_path = %I, pg_temp', name, current_schema());
        END LOOP; END $$;

ALTER POLICY tool_sees ON conversations USING (
        id = (SELECT tool_conversation()) OR id = (SELECT tool_owner()) OR (SELECT tool_is_main())
        OR principal_id = (SELECT tool_is_main_of()));

ALTER POLICY tool_makes ON conversations WITH CHECK (id = (SELECT tool_conversation())
        AND owner_id = id AND temporary = 0 AND trusted = 0 AND principal_id = (SELECT tool_principal()));

ALTER POLICY tool_removes ON conversations USING (temporary = 1
        AND ((SELECT tool_is_main()) OR principal_id = (SELECT tool_is_main_of())));

ALTER POLICY tool_says ON outbound_messages WITH CHECK (source_id = (SELECT tool_conversation())
        AND (conversation_id = (SELECT tool_owner()) OR (SELECT tool_is_main())
        OR ((SELECT tool_is_main_of()) IS NOT NULL AND EXISTS (SELECT 1 FROM conversations AS c
        WHERE c.id = conversation_id AND c.principal_id = (SELECT tool_is_main_of())))));

ALTER POLICY tool_tasks ON scheduled_tasks USING (
        conversation_id = (SELECT tool_owner()) OR (SELECT tool_is_main())
        OR ((SELECT tool_is_main_of()) IS NOT NULL AND EXISTS (SELECT 1 FROM conversations AS c
        WHERE c.id = conversation_id AND c.principal_id = (SELECT tool_is_main_of()))));

ALTER POLICY tool_logs ON task_runs USING ((SELECT tool_is_main()) OR EXISTS (
        SELECT 1 FROM scheduled_tasks AS t WHERE t.id = task_id));

ALTER POLICY tool_runs ON runs USING (
        conversation_id = (SELECT tool_conversation()) OR conversation_id = (SELECT tool_owner())
        OR (SELECT tool_is_main())
        OR ((SELECT tool_is_main_of()) IS NOT NULL AND EXISTS (SELECT 1 FROM conversations AS c
        WHERE c.id = conversation_id AND c.principal_id = (SELECT tool_is_main_of()))));

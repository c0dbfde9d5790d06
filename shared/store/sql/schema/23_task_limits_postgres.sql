-- What a principal's limit of tasks takes where a tool server's role sees no principal and not all tasks.
CREATE FUNCTION task_limit(whose text) RETURNS bigint LANGUAGE sql STABLE SECURITY DEFINER
            AS $$ SELECT (terms::jsonb ->> 'tasks')::bigint FROM principals WHERE id = whose $$;

CREATE FUNCTION count_tasks_of(whose text) RETURNS bigint LANGUAGE sql STABLE SECURITY DEFINER
            AS $$ SELECT count(*) FROM scheduled_tasks AS t JOIN conversations AS c ON c.id = t.conversation_id
            WHERE c.principal_id = whose $$;

-- A tool server trims its own principal's alone. Hidden conversations go with their tasks.
CREATE FUNCTION trim_tasks(whose text) RETURNS SETOF text LANGUAGE sql VOLATILE SECURITY DEFINER
            AS $$ WITH gone AS (DELETE FROM scheduled_tasks WHERE number IN (
                SELECT t.number FROM scheduled_tasks AS t JOIN conversations AS c ON c.id = t.conversation_id
            WHERE c.principal_id = whose AND t.status = 'completed' AND (tool_is_main()
                    OR tool_principal() = whose OR pg_has_role(session_user, current_user, 'MEMBER'))
                ORDER BY t.number LIMIT greatest(0, 1 - task_limit(whose) + count_tasks_of(whose)))
            RETURNING id, conversation_id), homes AS (DELETE FROM conversations AS h
                USING gone AS g WHERE h.id = g.conversation_id AND h.temporary = 1 AND h.owner_id = h.id
                AND NOT EXISTS (SELECT 1 FROM scheduled_tasks AS o WHERE o.conversation_id = h.id
                    AND o.id NOT IN (SELECT id FROM gone))
                AND NOT EXISTS (SELECT 1 FROM runs AS r JOIN conversations AS m ON m.id = r.conversation_id
                    WHERE r.state = 'running' AND m.temporary = 1 AND m.owner_id = h.id))
            SELECT conversation_id FROM gone $$;

DO $$ DECLARE name text; BEGIN
            FOREACH name IN ARRAY ARRAY['task_limit(text)', 'count_tasks_of(text)', 'trim_tasks(text)'] LOOP
                EXECUTE format('ALTER FUNCTION %s SET search_path = %I, pg_temp', name, current_schema());
            END LOOP; END $$;

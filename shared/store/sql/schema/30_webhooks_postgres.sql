-- Keeps them from finding tables of whoever calls them.
DO $$ DECLARE name text; BEGIN
        FOREACH name IN ARRAY ARRAY['run_told()', 'request_told()', 'answer_told()', 'message_told()',
            'task_told()', 'deletion_told()'] LOOP
            EXECUTE format('ALTER FUNCTION %s SET search_path = %I, pg_temp', name, current_schema());
        END LOOP; END $$;

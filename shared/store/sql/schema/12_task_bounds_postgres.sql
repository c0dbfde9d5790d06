-- Whoever deletes a task ends its run, whichever process it runs in. A tool server's role can't write runs.
CREATE FUNCTION task_deleted() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN
        UPDATE runs SET cancel_asked = 1 WHERE state = 'running' AND id IN
            (SELECT run_id FROM task_runs WHERE task_id = old.id AND state = 'running');
        RETURN old; END $$;

CREATE TRIGGER task_deleted BEFORE DELETE ON scheduled_tasks FOR EACH ROW
        EXECUTE FUNCTION task_deleted();

-- A tool server's role sees its own conversation's part of a tree alone.
CREATE FUNCTION task_tree_size(root text) RETURNS bigint LANGUAGE plpgsql STABLE SECURITY DEFINER
        AS $$ BEGIN RETURN (SELECT count(*) FROM scheduled_tasks
            WHERE (id = root OR tree_id = root) AND status IN ('active', 'paused')); END $$;

-- Keeps them from finding tables of whoever calls them.
DO $$ DECLARE name text; BEGIN
        FOREACH name IN ARRAY ARRAY['task_deleted()', 'task_tree_size(text)'] LOOP
            EXECUTE format('ALTER FUNCTION %s SET search_path = %I, pg_temp', name, current_schema());
        END LOOP; END $$;

-- Whoever deletes a task ends its run, whichever process it runs in.
CREATE TRIGGER task_deleted BEFORE DELETE ON scheduled_tasks BEGIN
        UPDATE runs SET cancel_asked = 1 WHERE state = 'running' AND id IN
            (SELECT run_id FROM task_runs WHERE task_id = old.id AND state = 'running'); END;

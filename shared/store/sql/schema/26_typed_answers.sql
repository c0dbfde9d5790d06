-- What a task's answers have to be, and those of its runs that were.
ALTER TABLE scheduled_tasks ADD COLUMN output_schema TEXT;

ALTER TABLE task_runs ADD COLUMN output TEXT;

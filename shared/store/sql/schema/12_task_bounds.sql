-- Tasks with an end, with an answer for people, and the tree of those that a task's runs made.
ALTER TABLE scheduled_tasks ADD COLUMN deliver TEXT NOT NULL DEFAULT 'answer';

ALTER TABLE scheduled_tasks ADD COLUMN ends_at <integer>;
ALTER TABLE scheduled_tasks ADD COLUMN max_runs <integer>;
ALTER TABLE scheduled_tasks ADD COLUMN runs_begun <integer> NOT NULL DEFAULT 0;
ALTER TABLE scheduled_tasks ADD COLUMN tree_id <id>;
ALTER TABLE scheduled_tasks ADD COLUMN depth <integer> NOT NULL DEFAULT 0;
ALTER TABLE scheduled_tasks ADD COLUMN told_failing INTEGER NOT NULL DEFAULT 0;
CREATE INDEX tasks_of_tree ON scheduled_tasks (tree_id) WHERE tree_id IS NOT NULL;

-- Runs that continue each other: the first one, the one before, and what all up to here have spent.
ALTER TABLE runs ADD COLUMN root_id <id>;

ALTER TABLE runs ADD COLUMN previous_id <id>;
ALTER TABLE runs ADD COLUMN spent_tokens <integer> NOT NULL DEFAULT 0;
ALTER TABLE runs ADD COLUMN spent_microdollars <integer> NOT NULL DEFAULT 0;
CREATE UNIQUE INDEX one_next_run ON runs (previous_id) WHERE previous_id IS NOT NULL;

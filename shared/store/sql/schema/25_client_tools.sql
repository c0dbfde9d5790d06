-- Whether the result that a program gave says that its call failed.
ALTER TABLE approvals ADD COLUMN is_error INTEGER NOT NULL DEFAULT 0;

-- For which conversation another agent began it.
ALTER TABLE conversations ADD COLUMN begun_by <id>;

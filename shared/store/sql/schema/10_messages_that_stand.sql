ALTER TABLE messages ADD COLUMN refused INTEGER NOT NULL DEFAULT 0;
UPDATE messages SET refused = 1 WHERE run_id IN (SELECT id FROM runs WHERE code = 'refused');
ALTER TABLE compactions ADD COLUMN message_seq INTEGER NOT NULL DEFAULT 0;
ALTER TABLE compactions ADD COLUMN message_chars INTEGER NOT NULL DEFAULT 0;

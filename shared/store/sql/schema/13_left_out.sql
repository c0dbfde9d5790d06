-- Kinds of blocks that the model's API refused, and up to which message they are left out (JSON).
ALTER TABLE compactions ADD COLUMN left_out TEXT NOT NULL DEFAULT '{}';

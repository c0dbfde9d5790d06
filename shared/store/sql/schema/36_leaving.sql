-- A conversation with much in it is deleted in pieces: nothing begins in it from the first one on.
ALTER TABLE conversations ADD COLUMN leaving <integer> NOT NULL DEFAULT 0;

CREATE INDEX conversations_leaving ON conversations (id) WHERE leaving = 1;

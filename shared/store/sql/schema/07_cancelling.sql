-- Who wants a run stopped may ask any host; the one that runs it looks.
ALTER TABLE runs ADD COLUMN cancel_asked INTEGER NOT NULL DEFAULT 0;

CREATE INDEX runs_to_cancel ON runs (lease_owner) WHERE state = 'running' AND cancel_asked = 1;

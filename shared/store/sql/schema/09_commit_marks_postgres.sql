-- Says of a transaction whose commit was not heard whether it was: a transaction's number may come again
-- after a crash, its mark doesn't.
CREATE TABLE commit_marks (mark UUID PRIMARY KEY, made_at TIMESTAMPTZ NOT NULL DEFAULT now());

CREATE INDEX commit_marks_made_at ON commit_marks (made_at);

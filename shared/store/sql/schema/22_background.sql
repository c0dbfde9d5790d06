-- Whose each run is, and how often one may be begun again by itself (0: with its slot).
ALTER TABLE runs ADD COLUMN principal_id <id> NOT NULL DEFAULT 'operator';

UPDATE runs SET principal_id =
            (SELECT c.principal_id FROM conversations AS c WHERE c.id = conversation_id)
            WHERE conversation_id IN (SELECT id FROM conversations WHERE principal_id <> 'operator');

CREATE INDEX runs_of_principal ON runs (principal_id, number, created_at, state, code);
CREATE INDEX runs_of_chain ON runs (root_id) WHERE previous_id IS NOT NULL;
ALTER TABLE runs ADD COLUMN again INTEGER;
CREATE INDEX runs_to_begin_again ON runs (number) WHERE code = 'retryable' AND again IS NOT NULL;

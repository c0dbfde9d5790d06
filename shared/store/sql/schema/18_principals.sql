CREATE TABLE principals (
            number <number>,
            id <id> NOT NULL UNIQUE,
            name TEXT NOT NULL,
            directory <id> NOT NULL UNIQUE,
            created_at <integer> NOT NULL,
            status TEXT NOT NULL,
            terms TEXT NOT NULL,
            issuer <id>,
            subject <id>,
            uid <integer> UNIQUE,
            deleted_at <integer>,
            revision <integer> NOT NULL DEFAULT 0
        ) <table>;

CREATE UNIQUE INDEX principals_by_subject ON principals (issuer, subject)
            WHERE subject IS NOT NULL AND status <> 'deleted';

CREATE INDEX principals_by_status ON principals (status, number);

INSERT INTO principals (id, name, directory, created_at, status, terms)
            VALUES ('operator', 'operator', '', 0, 'active', '{}');

ALTER TABLE conversations ADD COLUMN principal_id <id> NOT NULL DEFAULT 'operator';

CREATE INDEX conversations_of_principal
            ON conversations (principal_id, last_activity DESC, id DESC) WHERE temporary = 0;

CREATE INDEX all_conversations_of_principal
            ON conversations (principal_id, last_activity DESC, id DESC);

ALTER TABLE tokens ADD COLUMN principal_id <id> NOT NULL DEFAULT 'operator';
ALTER TABLE tokens ADD COLUMN name TEXT NOT NULL DEFAULT '';
ALTER TABLE tokens ADD COLUMN scopes TEXT NOT NULL DEFAULT 'mcp tasks';
ALTER TABLE tokens ADD COLUMN last_used_at <integer>;
CREATE INDEX tokens_of_principal ON tokens (principal_id, number);

-- All together under '', which stay when a principal goes, and each one's own.
ALTER TABLE usage_by_day RENAME TO usage_of_host_by_day;

CREATE TABLE usage_by_day (
            principal_id <id> NOT NULL DEFAULT '',
            day <id> NOT NULL,
            shard INTEGER NOT NULL,
            runs <integer> NOT NULL,
        input_tokens <integer> NOT NULL,
        output_tokens <integer> NOT NULL,
        cache_creation_input_tokens <integer> NOT NULL,
        cache_read_input_tokens <integer> NOT NULL,
        unsettled_tokens <integer> NOT NULL,
        microdollars <integer> NOT NULL,
            PRIMARY KEY (principal_id, day, shard)
        ) <by key>;

INSERT INTO usage_by_day SELECT '', h.* FROM usage_of_host_by_day AS h;
INSERT INTO usage_by_day SELECT 'operator', h.* FROM usage_of_host_by_day AS h;
DROP TABLE usage_of_host_by_day;

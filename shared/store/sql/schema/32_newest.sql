-- Two indexes in the place of five: each turn changes every one that has the last activity.
CREATE INDEX newest_conversations ON conversations (temporary, last_activity DESC, id DESC);

CREATE INDEX newest_conversations_of_principal
            ON conversations (principal_id, temporary, last_activity DESC, id DESC);

DROP INDEX conversations_by_activity;
DROP INDEX all_conversations_by_activity;
DROP INDEX temporary_by_activity;
DROP INDEX conversations_of_principal;
DROP INDEX all_conversations_of_principal;

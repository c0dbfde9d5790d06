CREATE TRIGGER run_ended AFTER UPDATE OF state ON runs
        WHEN old.state = 'running' AND new.state <> 'running' BEGIN UPDATE scheduled_tasks SET waits = 0 WHERE conversation_id = new.conversation_id AND waits = 1; END;

CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
INSERT INTO counters VALUES ('conversations', 0), ('tasks', 0);

CREATE TRIGGER conversation_added AFTER INSERT ON conversations WHEN new.temporary = 0
        BEGIN UPDATE counters SET value = value + 1 WHERE name = 'conversations'; END;

CREATE TRIGGER conversation_removed AFTER DELETE ON conversations WHEN old.temporary = 0
        BEGIN UPDATE counters SET value = value - 1 WHERE name = 'conversations'; END;

CREATE TRIGGER task_added AFTER INSERT ON scheduled_tasks
        BEGIN UPDATE counters SET value = value + 1 WHERE name = 'tasks'; END;

CREATE TRIGGER task_removed AFTER DELETE ON scheduled_tasks
        BEGIN UPDATE counters SET value = value - 1 WHERE name = 'tasks'; END;

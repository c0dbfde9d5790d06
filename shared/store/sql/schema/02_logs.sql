-- Retention asks whether any log row still needs a temporary conversation.
CREATE INDEX task_runs_by_conversation ON task_runs (conversation_id) WHERE conversation_id IS NOT NULL;

CREATE INDEX temporary_by_activity ON conversations (last_activity) WHERE temporary = 1;

-- Unknown (NULL counts as no) where a channel began a conversation: whose chats are trusted is a
-- setting, so the channel's next start decides.
ALTER TABLE conversations ADD COLUMN trusted INTEGER DEFAULT 1;

UPDATE conversations SET trusted = NULL WHERE id IN (
            SELECT conversation_id FROM channel_chats WHERE conversation_id = channel || ':' || chat_id
            OR conversation_id LIKE channel || ':' || chat_id || '.%');

UPDATE conversations SET trusted = 0
            WHERE owner_id IN (SELECT id FROM conversations WHERE trusted IS NULL) AND owner_id <> id;

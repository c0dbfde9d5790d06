-- As the other engine has them: the counters of a day in parts, and a trigger for what chats are to hear.
ALTER TABLE usage_by_day RENAME TO usage_by_whole_day;

CREATE TABLE usage_by_day (
        day <id> NOT NULL,
        shard INTEGER NOT NULL,
        runs <integer> NOT NULL,
        input_tokens <integer> NOT NULL,
        output_tokens <integer> NOT NULL,
        cache_creation_input_tokens <integer> NOT NULL,
        cache_read_input_tokens <integer> NOT NULL,
        unsettled_tokens <integer> NOT NULL,
        microdollars <integer> NOT NULL,
        PRIMARY KEY (day, shard)
    ) <by key>;

INSERT INTO usage_by_day SELECT day, 0, runs, input_tokens, output_tokens, cache_creation_input_tokens,
        cache_read_input_tokens, unsettled_tokens, microdollars FROM usage_by_whole_day;

DROP TABLE usage_by_whole_day;

-- In the transaction of whoever speaks: no message that chats never hear of.
CREATE TRIGGER said AFTER INSERT ON outbound_messages BEGIN INSERT INTO channel_deliveries
            (conversation_id, channel, chat_id, source, text, created_at)
            SELECT conversation_id, channel, chat_id, 'said:' || new.id, new.text, new.created_at
            FROM channel_chats WHERE conversation_id = new.conversation_id; END;

-- Who is in which conversation.
CREATE TABLE channel_chats (
        number <number>,
        conversation_id <id> NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
        channel <id> NOT NULL,
        chat_id <id> NOT NULL,
        current INTEGER NOT NULL,
        private INTEGER NOT NULL,
        sender_id TEXT NOT NULL,
        sender_name TEXT NOT NULL,
        UNIQUE (conversation_id, channel, chat_id)
    ) <table>;

CREATE UNIQUE INDEX one_current_conversation ON channel_chats (channel, chat_id) WHERE current = 1;
CREATE INDEX conversations_of_chat ON channel_chats (channel, chat_id, number);

-- What came in; the body goes once it is handled.
CREATE TABLE channel_updates (
        number <sequence>,
        channel <id> NOT NULL,
        update_id <id> NOT NULL,
        chat_id <id> NOT NULL,
        urgent INTEGER NOT NULL,
        body TEXT NOT NULL,
        received_at <integer> NOT NULL,
        run_id TEXT,
        conversation_id <id>,
        draft_id TEXT,
        settled_at <integer>,
        UNIQUE (channel, update_id)
    ) <table>;

CREATE INDEX updates_waiting ON channel_updates (channel, urgent, chat_id, number)
        WHERE settled_at IS NULL;

CREATE INDEX updates_by_end ON channel_updates (settled_at) WHERE settled_at IS NOT NULL;

-- What goes out.
CREATE TABLE channel_deliveries (
        number <sequence>,
        conversation_id <id> NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
        channel <id> NOT NULL,
        chat_id <id> NOT NULL,
        source <id> NOT NULL,
        text TEXT NOT NULL,
        reply_to TEXT,
        draft_id TEXT,
        parts_sent <integer> NOT NULL DEFAULT 0,
        attempts <integer> NOT NULL DEFAULT 0,
        not_before <integer> NOT NULL DEFAULT 0,
        error TEXT,
        untold INTEGER NOT NULL DEFAULT 0,
        created_at <integer> NOT NULL,
        ended_at <integer>,
        UNIQUE (channel, chat_id, source)
    ) <table>;

CREATE INDEX deliveries_waiting ON channel_deliveries (channel, chat_id, number) WHERE ended_at IS NULL;
CREATE INDEX deliveries_untold ON channel_deliveries (channel, number) WHERE untold = 1;
CREATE INDEX deliveries_of_conversation ON channel_deliveries (conversation_id);
CREATE INDEX deliveries_by_end ON channel_deliveries (ended_at) WHERE ended_at IS NOT NULL;

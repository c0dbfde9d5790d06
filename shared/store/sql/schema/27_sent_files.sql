-- A file that a message brings, as JSON.
ALTER TABLE outbound_messages ADD COLUMN file TEXT;

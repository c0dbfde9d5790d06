ALTER TABLE mcp_sign_ins ADD COLUMN renewing_until <integer> NOT NULL DEFAULT 0;

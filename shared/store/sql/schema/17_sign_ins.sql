CREATE TABLE mcp_sign_ins (
            server <id> PRIMARY KEY,
            sealed <bytes> NOT NULL,
            changed_at <integer> NOT NULL
        ) <table>;

DROP POLICY tool_makes ON conversations;

CREATE POLICY tool_makes ON conversations FOR INSERT WITH CHECK (
            id = (SELECT tool_conversation()) AND owner_id = id AND temporary = 0 AND trusted = 0);

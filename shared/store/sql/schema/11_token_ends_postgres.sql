-- A tool server's role doesn't see tokens. Whoever ends this one waits until the transaction is over.
CREATE FUNCTION token_lives(wanted text, moment bigint) RETURNS boolean
        LANGUAGE plpgsql VOLATILE SECURITY DEFINER AS $$ BEGIN
            PERFORM 1 FROM tokens
                WHERE id = wanted AND (expires_at IS NULL OR expires_at > moment) FOR KEY SHARE;
            RETURN FOUND;
        END $$;

-- Keeps them from finding tables of whoever calls them.
DO $$ DECLARE name text; BEGIN
        FOREACH name IN ARRAY ARRAY['token_lives(text, bigint)'] LOOP
            EXECUTE format('ALTER FUNCTION %s SET search_path = %I, pg_temp', name, current_schema());
        END LOOP; END $$;

DO $$ BEGIN EXECUTE format('ALTER FUNCTION gone() SET search_path = %I, pg_temp', current_schema()); END $$;

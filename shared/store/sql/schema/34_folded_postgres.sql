-- A text as a search compares it: capitals alike, and accents however they are written. By ICU, which every usual
-- server has: a database of the locale C knows the capitals of ASCII alone. To normalize costs seven times as much as
-- all else; few texts need it, and none in Latin letters without combining marks.
DO $$ BEGIN
        EXECUTE format('CREATE FUNCTION folded(said text) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE AS %L',
            (SELECT format($f$SELECT CASE WHEN said ~ '[^\x01-\u02ff]' AND said IS NOT NFC NORMALIZED
                THEN normalize(upper(said%1$s)) ELSE upper(said%1$s) END$f$, max(' COLLATE "und-x-icu"'))
                FROM pg_collation WHERE collname = 'und-x-icu'));
        END $$;

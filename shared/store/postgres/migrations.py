"""The schema's versions on PostgreSQL, in ``schema_migrations``, and what a tool server may reach in it.

Each version is applied once, under a lock of its own. Tables and columns have the names they have in SQLite,
so that ``picoclaw store migrate`` copies rows as they are; a test compares the two. What differs: counters
that every transaction adds to are spread over shards, because a row that all hosts update would make them
wait for each other's commits.

A tool server has a role of its own, which sees no row by itself. Each of its transactions shows a token: the
conversation it acts for, whose that is and whether it is the main one, signed (HMAC-SHA-256, RFC 2104) with a
key that only the host's role can read. The policies (row-level security) compare rows with what the token
says, so whoever has a tool server's whole access can act for that one conversation, whatever statements it
sends. A token is made by the host when the session is born.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

from shared import jsons
from shared.principals import OPERATOR
from shared.store.contract import Tx
from shared.store.postgres.database import Database
from shared.store.postgres.driver import SHARDS
from shared.store.rows import there
from shared.store.sql import tables
from shared.store.sql.migrations import check_not_newer, steps

BLOCK: Final = 64
"""Bytes of a block of SHA-256 (FIPS 180-4)."""

TABLES: Final[Mapping[str, str]] = {
    "conversations": "SELECT, INSERT, DELETE",
    "outbound_messages": "SELECT, INSERT",
    "scheduled_tasks": "SELECT, INSERT, UPDATE, DELETE",
    "task_runs": "SELECT",
    "runs": "SELECT (id, conversation_id, state)",
}
"""What a tool server's role may do at all; the policies say to which rows."""

FUNCTIONS: Final = ("tool_token()", "tool_conversation()", "tool_owner()", "tool_is_main()")


def fixed_search_path(function: str) -> tuple[str]:
    """Return the statement that keeps a function from finding tables of whoever calls it."""
    return (
        f"""DO $$ BEGIN EXECUTE format(
            'ALTER FUNCTION {function} SET search_path = %I, pg_temp', current_schema()); END $$""",
    )


SCHEMA: Final = (
    "CREATE TABLE tool_key (one INTEGER PRIMARY KEY CHECK (one = 1), inner_pad BYTEA, outer_pad BYTEA)",
    # m.<signature>.<conversation> for the main conversation, o.… for any other; NULL unless it is genuine.
    """CREATE FUNCTION tool_token() RETURNS text LANGUAGE plpgsql STABLE SECURITY DEFINER AS $$
        DECLARE
            token text := current_setting('picoclaw.token', true);
            said text := substr(token, 1, 2) || substr(token, 68);
            signature text;
        BEGIN
            SELECT encode(sha256(outer_pad || sha256(inner_pad || convert_to(said, 'UTF8'))), 'hex')
                INTO signature FROM tool_key;
            IF signature = substr(token, 3, 64) THEN RETURN said; END IF;
            RETURN NULL;
        END $$""",
    """CREATE FUNCTION tool_conversation() RETURNS text LANGUAGE sql STABLE
        AS $$ SELECT substr(tool_token(), 3) $$""",
    """CREATE FUNCTION tool_is_main() RETURNS boolean LANGUAGE sql STABLE
        AS $$ SELECT coalesce(substr(tool_token(), 1, 2) = 'm.', false) $$""",
    # What an isolated run does, it does for the conversation that owns it.
    """CREATE FUNCTION tool_owner() RETURNS text LANGUAGE plpgsql STABLE SECURITY DEFINER AS $$
        DECLARE
            own text := tool_conversation();
        BEGIN
            RETURN coalesce((SELECT owner_id FROM conversations WHERE id = own), own);
        END $$""",
    *(statement for name in FUNCTIONS for statement in fixed_search_path(name)),
    *(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY" for table in TABLES),
    # Asked for once in a statement, not once a row: the sub-select makes it a constant of the plan.
    """CREATE POLICY tool_sees ON conversations FOR SELECT USING (
        id = (SELECT tool_conversation()) OR id = (SELECT tool_owner()) OR (SELECT tool_is_main()))""",
    """CREATE POLICY tool_makes ON conversations FOR INSERT WITH CHECK (
        id = (SELECT tool_conversation()) AND owner_id = id AND temporary = 0)""",
    """CREATE POLICY tool_removes ON conversations FOR DELETE
        USING (temporary = 1 AND (SELECT tool_is_main()))""",
    """CREATE POLICY tool_hears ON outbound_messages FOR SELECT
        USING (source_id = (SELECT tool_conversation()))""",
    """CREATE POLICY tool_says ON outbound_messages FOR INSERT WITH CHECK (
        source_id = (SELECT tool_conversation())
        AND (conversation_id = (SELECT tool_owner()) OR (SELECT tool_is_main())))""",
    """CREATE POLICY tool_tasks ON scheduled_tasks
        USING (conversation_id = (SELECT tool_owner()) OR (SELECT tool_is_main()))""",
    """CREATE POLICY tool_logs ON task_runs FOR SELECT USING ((SELECT tool_is_main()) OR EXISTS (
        SELECT 1 FROM scheduled_tasks AS t
        WHERE t.id = task_id AND t.conversation_id = (SELECT tool_owner())))""",
    """CREATE POLICY tool_runs ON runs FOR SELECT USING (
        conversation_id = (SELECT tool_conversation()) OR conversation_id = (SELECT tool_owner())
        OR (SELECT tool_is_main()))""",
)


@dataclass(frozen=True, slots=True)
class ToolKey:
    """The key that tokens are signed with, as the two padded blocks of HMAC."""

    inner_pad: bytes
    outer_pad: bytes

    @classmethod
    def new(cls) -> ToolKey:
        """Make one at random."""
        key = secrets.token_bytes(BLOCK)
        return cls(bytes(byte ^ 0x36 for byte in key), bytes(byte ^ 0x5C for byte in key))

    def token(self, conversation_id: str, *, is_main: bool, principal_id: str) -> str:
        """Return the token of a tool server's session, as the policies read it (``sql.migrations``)."""
        if principal_id == OPERATOR:
            kind, whom = "m" if is_main else "o", conversation_id
        else:
            kind, whom = "p" if is_main else "q", f"{principal_id}/{conversation_id}"
        return f"{kind}.{self._sign(f'{kind}.{whom}')}.{whom}"

    def password(self) -> str:
        """Return the password of the role that hosts make for their tool servers."""
        return self._sign("the role of the tool servers")

    def _sign(self, text: str) -> str:
        key = bytes(byte ^ 0x36 for byte in self.inner_pad)
        return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


@dataclass(frozen=True, slots=True)
class ToolRole:
    """How a host makes what its tool servers reach the database with."""

    url: str
    key: ToolKey
    pooled: bool

    def text_for(self, conversation_id: str, *, is_main: bool, principal_id: str) -> str:
        """Return all that one session's process is told of the database, for ``open_tool_store``."""
        token = self.key.token(conversation_id, is_main=is_main, principal_id=principal_id)
        return jsons.dumps([self.url, token, self.pooled])


async def tool_key(tx: Tx) -> ToolKey:
    """Return this database's key, made now if it is absent."""
    new = ToolKey.new()
    await tx.execute(
        "INSERT INTO tool_key VALUES (1, $1, $2) ON CONFLICT DO NOTHING", new.inner_pad, new.outer_pad
    )
    row = there(await tx.fetchrow("SELECT inner_pad, outer_pad FROM tool_key"))
    return ToolKey(row["inner_pad"], row["outer_pad"])


def address_for(url: str, role: str, password: str) -> str:
    """Return the host's address of the database with another role's credentials."""
    parts = urlsplit(url)
    place = parts.netloc.rpartition("@")[2]
    query = [(name, value) for name, value in parse_qsl(parts.query) if name not in ("user", "password")]
    netloc = f"{quote(role, safe='')}:{password}@{place}"
    return urlunsplit((parts.scheme, netloc, parts.path, urlencode(query), ""))


logger = logging.getLogger("picoclaw.store")

LOCK: Final = 7_165_427_331
"""Key of the advisory lock that hosts starting at once take before they migrate."""

WORDS: Final = {
    "id": 'TEXT COLLATE "C"',
    "integer": "BIGINT",
    "bytes": "BYTEA",
    "number": "BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY",
    "sequence": "BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY",
    "table": "",
    "by key": "",
    "now": "(extract(epoch FROM now()) * 1000)::bigint",
    "random": "replace(gen_random_uuid()::text, '-', '')",
    "object": "json_build_object",
}

TRIGGERS: Final = (
    "CREATE INDEX runs_by_lease ON runs (lease_until) WHERE state = 'running'",
    """CREATE TABLE counters (
        name TEXT NOT NULL, shard INTEGER NOT NULL, value BIGINT NOT NULL, PRIMARY KEY (name, shard)
    )""",
    # With the host's rights, whoever speaks.
    f"""CREATE FUNCTION said() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN
        {tables.ON_SAID};
        RETURN NULL; END $$""",
    """CREATE TRIGGER said AFTER INSERT ON outbound_messages FOR EACH ROW EXECUTE FUNCTION said()""",
    f"""CREATE FUNCTION run_ended() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        {tables.ON_RUN_ENDED};
        RETURN NULL; END $$""",
    """CREATE TRIGGER run_ended AFTER UPDATE OF state ON runs FOR EACH ROW
        WHEN (old.state = 'running' AND new.state <> 'running') EXECUTE FUNCTION run_ended()""",
    # With the rights of whoever made it: a tool server's role counts too, but can't write the counters.
    f"""CREATE FUNCTION counted() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN
        INSERT INTO counters AS c VALUES (tg_argv[0], pg_backend_pid() % {SHARDS}, tg_argv[1]::bigint)
            ON CONFLICT (name, shard) DO UPDATE SET value = c.value + excluded.value;
        RETURN NULL; END $$""",
    """CREATE TRIGGER conversation_added AFTER INSERT ON conversations FOR EACH ROW
        WHEN (new.temporary = 0) EXECUTE FUNCTION counted('conversations', '1')""",
    """CREATE TRIGGER conversation_removed AFTER DELETE ON conversations FOR EACH ROW
        WHEN (old.temporary = 0) EXECUTE FUNCTION counted('conversations', '-1')""",
    """CREATE TRIGGER task_added AFTER INSERT ON scheduled_tasks FOR EACH ROW
        EXECUTE FUNCTION counted('tasks', '1')""",
    """CREATE TRIGGER task_removed AFTER DELETE ON scheduled_tasks FOR EACH ROW
        EXECUTE FUNCTION counted('tasks', '-1')""",
    *SCHEMA,
    *fixed_search_path("counted()"),
    *fixed_search_path("said()"),
)

MARKS: Final = (
    # Says of a transaction whose commit was not heard whether it was: a transaction's number may come again
    # after a crash, its mark doesn't.
    "CREATE TABLE commit_marks (mark UUID PRIMARY KEY, made_at TIMESTAMPTZ NOT NULL DEFAULT now())",
    "CREATE INDEX commit_marks_made_at ON commit_marks (made_at)",
)

TOKEN_ENDS: Final = (
    # A tool server's role doesn't see tokens. Whoever ends this one waits until the transaction is over.
    """CREATE FUNCTION token_lives(wanted text, moment bigint) RETURNS boolean
        LANGUAGE plpgsql VOLATILE SECURITY DEFINER AS $$ BEGIN
            PERFORM 1 FROM tokens
                WHERE id = wanted AND (expires_at IS NULL OR expires_at > moment) FOR KEY SHARE;
            RETURN FOUND;
        END $$""",
    *fixed_search_path("token_lives(text, bigint)"),
)

TREES: Final = (
    # A tool server's role can't write runs.
    f"""CREATE FUNCTION task_deleted() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN
        {tables.ON_TASK_DELETED};
        RETURN old; END $$""",
    """CREATE TRIGGER task_deleted BEFORE DELETE ON scheduled_tasks FOR EACH ROW
        EXECUTE FUNCTION task_deleted()""",
    # A tool server's role sees its own conversation's part of a tree alone.
    """CREATE FUNCTION task_tree_size(root text) RETURNS bigint LANGUAGE plpgsql STABLE SECURITY DEFINER
        AS $$ BEGIN RETURN (SELECT count(*) FROM scheduled_tasks
            WHERE (id = root OR tree_id = root) AND status IN ('active', 'paused')); END $$""",
    *fixed_search_path("task_deleted()"),
    *fixed_search_path("task_tree_size(text)"),
)

FIRST: Final = (
    *tables.TABLES,
    *tables.LOGS,
    tables.USAGE_BY_DAY,
    *tables.USAGE,
    *tables.COMPACTIONS,
    *tables.CHANNELS,
    *tables.TOKENS,
    *tables.CANCELLING,
    *TRIGGERS,
)

STEPS: Final = steps(
    "postgres",
    (FIRST, MARKS, tables.MESSAGES_THAT_STAND, TOKEN_ENDS, (*tables.TASK_BOUNDS, *TREES), tables.LEFT_OUT),
    WORDS,
)
"""Statements of each migration, oldest first; new ones stand in ``shared.store.sql.migrations``."""

SCHEMA_VERSION: Final = len(STEPS)


async def migrate(database: Database) -> None:
    """Bring a database up to SCHEMA_VERSION, all or nothing; raises StoreVersion."""
    await database.write(_migrate)


async def _migrate(tx: Tx) -> None:
    if not await tx.fetchval("SELECT pg_try_advisory_xact_lock($1)", LOCK):
        logger.warning("DATABASE_URL: waiting for another host, which migrates this database")
        await tx.execute("SELECT pg_advisory_xact_lock($1)", LOCK)
    version = await schema_version(tx)
    check_not_newer(version, SCHEMA_VERSION)
    if version == 0:
        await tx.execute("CREATE TABLE schema_migrations (number INTEGER PRIMARY KEY)")
    elif version < SCHEMA_VERSION:
        logger.warning(
            "The schema is migrated from version %d to %d; the way back is a backup made before (pg_dump)",
            version,
            SCHEMA_VERSION,
        )
    for number, statements in enumerate(STEPS[version:], start=version + 1):
        for statement in statements:
            await tx.execute(statement)
        await tx.execute("INSERT INTO schema_migrations VALUES ($1)", number)


async def schema_version(tx: Tx) -> int:
    """Return the number of the newest migration, 0 for a database without any."""
    if await tx.fetchval("SELECT to_regclass('schema_migrations')") is None:
        return 0
    return int(await tx.fetchval("SELECT coalesce(max(number), 0) FROM schema_migrations"))

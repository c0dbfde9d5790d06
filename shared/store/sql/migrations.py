"""Changes of the schema, written once for every engine. To add a table or a column, append to ``MIGRATIONS``.

Statements are PostgreSQL's, but for these words in angle brackets, which differ:

- ``<id>``: a text that is compared byte by byte; every column of a key has it
- ``<integer>``: a whole number of 64 bits, instants among them; flags are ``INTEGER``
- ``<bytes>``
- ``<now>``: the database's clock, in milliseconds
- ``<number>``: a row's own number, its primary key; ``<sequence>``: one that is never given out twice
- ``<random>``, ``<object>``: functions that make 32 random digits, and JSON of names and values
- ``<table>``, ``<by key>``: what ends a table, the second where rows lie in the order of their key

A landed migration is never edited: a change is a new one. Sessions outlive an upgrade, so names stay.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from shared.errors import StoreVersion
from shared.store.sql import outbox
from shared.store.sql.tables import SPENT

WORD: Final = re.compile(r"<(\w+(?: \w+)?)>")


@dataclass(frozen=True, slots=True)
class Migration:
    """``statements`` for every engine, then each one's own: triggers, rights of the tool servers' role."""

    statements: tuple[str, ...]
    sqlite: tuple[str, ...] = ()
    postgres: tuple[str, ...] = ()


TRUST: Final = Migration(
    (
        # Unknown (NULL counts as no) where a channel began a conversation: whose chats are trusted is a
        # setting, so the channel's next start decides.
        "ALTER TABLE conversations ADD COLUMN trusted INTEGER DEFAULT 1",
        """UPDATE conversations SET trusted = NULL WHERE id IN (
            SELECT conversation_id FROM channel_chats WHERE conversation_id = channel || ':' || chat_id
            OR conversation_id LIKE channel || ':' || chat_id || '.%')""",
        """UPDATE conversations SET trusted = 0
            WHERE owner_id IN (SELECT id FROM conversations WHERE trusted IS NULL) AND owner_id <> id""",
    ),
    postgres=(
        "DROP POLICY tool_makes ON conversations",
        """CREATE POLICY tool_makes ON conversations FOR INSERT WITH CHECK (
            id = (SELECT tool_conversation()) AND owner_id = id AND temporary = 0 AND trusted = 0)""",
    ),
)

TITLES: Final = Migration(("ALTER TABLE conversations ADD COLUMN title TEXT",))

SIGN_INS: Final = Migration(
    (
        """CREATE TABLE mcp_sign_ins (
            server <id> PRIMARY KEY,
            sealed <bytes> NOT NULL,
            changed_at <integer> NOT NULL
        ) <table>""",
    )
)

OF_PRINCIPAL: Final = """((SELECT tool_is_main_of()) IS NOT NULL AND EXISTS (SELECT 1 FROM conversations AS c
        WHERE c.id = conversation_id AND c.principal_id = (SELECT tool_is_main_of())))"""

# What tool servers of principals reach on PostgreSQL. Such a server's token names its principal too:
# p.<signature>.<principal>/<conversation> for its main conversation, q.… for any other.
PRINCIPALS_OF_TOOLS: Final = (
    """CREATE FUNCTION principal_lives(wanted text) RETURNS boolean LANGUAGE plpgsql VOLATILE SECURITY DEFINER
        AS $$ BEGIN
            PERFORM 1 FROM principals WHERE id = wanted AND status = 'active' FOR SHARE;
            RETURN FOUND;
        END $$""",
    """CREATE OR REPLACE FUNCTION token_lives(wanted text, moment bigint) RETURNS boolean
        LANGUAGE plpgsql VOLATILE SECURITY DEFINER AS $$ DECLARE
            whose text := (SELECT principal_id FROM tokens
                WHERE id = wanted AND (expires_at IS NULL OR expires_at > moment) FOR KEY SHARE);
        BEGIN
            RETURN whose IS NOT NULL AND (whose = 'operator' OR principal_lives(whose));
        END $$""",
    """CREATE OR REPLACE FUNCTION tool_conversation() RETURNS text LANGUAGE sql STABLE AS $$
        SELECT CASE WHEN tool_token() ~ '^[pq]' THEN substr(tool_token(), strpos(tool_token(), '/') + 1)
            ELSE substr(tool_token(), 3) END $$""",
    """CREATE FUNCTION tool_principal() RETURNS text LANGUAGE sql STABLE AS $$
        SELECT CASE WHEN tool_token() ~ '^[pq]' THEN split_part(substr(tool_token(), 3), '/', 1)
            WHEN tool_token() IS NOT NULL THEN 'operator' END $$""",
    """CREATE FUNCTION tool_is_main_of() RETURNS text LANGUAGE sql STABLE
        AS $$ SELECT CASE WHEN tool_token() ~ '^p' THEN tool_principal() END $$""",
    """DO $$ DECLARE name text; BEGIN
        FOREACH name IN ARRAY ARRAY['principal_lives(text)', 'token_lives(text, bigint)',
            'tool_conversation()', 'tool_principal()', 'tool_is_main_of()'] LOOP
            EXECUTE format('ALTER FUNCTION %s SET search_path = %I, pg_temp', name, current_schema());
        END LOOP; END $$""",
    """ALTER POLICY tool_sees ON conversations USING (
        id = (SELECT tool_conversation()) OR id = (SELECT tool_owner()) OR (SELECT tool_is_main())
        OR principal_id = (SELECT tool_is_main_of()))""",
    """ALTER POLICY tool_makes ON conversations WITH CHECK (id = (SELECT tool_conversation())
        AND owner_id = id AND temporary = 0 AND trusted = 0 AND principal_id = (SELECT tool_principal()))""",
    """ALTER POLICY tool_removes ON conversations USING (temporary = 1
        AND ((SELECT tool_is_main()) OR principal_id = (SELECT tool_is_main_of())))""",
    f"""ALTER POLICY tool_says ON outbound_messages WITH CHECK (source_id = (SELECT tool_conversation())
        AND (conversation_id = (SELECT tool_owner()) OR (SELECT tool_is_main()) OR {OF_PRINCIPAL}))""",
    f"""ALTER POLICY tool_tasks ON scheduled_tasks USING (
        conversation_id = (SELECT tool_owner()) OR (SELECT tool_is_main()) OR {OF_PRINCIPAL})""",
    """ALTER POLICY tool_logs ON task_runs USING ((SELECT tool_is_main()) OR EXISTS (
        SELECT 1 FROM scheduled_tasks AS t WHERE t.id = task_id))""",
    f"""ALTER POLICY tool_runs ON runs USING (
        conversation_id = (SELECT tool_conversation()) OR conversation_id = (SELECT tool_owner())
        OR (SELECT tool_is_main()) OR {OF_PRINCIPAL})""",
)

PRINCIPALS: Final = Migration(
    (
        """CREATE TABLE principals (
            number <number>,
            id <id> NOT NULL UNIQUE,
            name TEXT NOT NULL,
            directory <id> NOT NULL UNIQUE,
            created_at <integer> NOT NULL,
            status TEXT NOT NULL,
            terms TEXT NOT NULL,
            issuer <id>,
            subject <id>,
            uid <integer> UNIQUE,
            deleted_at <integer>,
            revision <integer> NOT NULL DEFAULT 0
        ) <table>""",
        """CREATE UNIQUE INDEX principals_by_subject ON principals (issuer, subject)
            WHERE subject IS NOT NULL AND status <> 'deleted'""",
        "CREATE INDEX principals_by_status ON principals (status, number)",
        """INSERT INTO principals (id, name, directory, created_at, status, terms)
            VALUES ('operator', 'operator', '', 0, 'active', '{}')""",
        "ALTER TABLE conversations ADD COLUMN principal_id <id> NOT NULL DEFAULT 'operator'",
        """CREATE INDEX conversations_of_principal
            ON conversations (principal_id, last_activity DESC, id DESC) WHERE temporary = 0""",
        """CREATE INDEX all_conversations_of_principal
            ON conversations (principal_id, last_activity DESC, id DESC)""",
        "ALTER TABLE tokens ADD COLUMN principal_id <id> NOT NULL DEFAULT 'operator'",
        "ALTER TABLE tokens ADD COLUMN name TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE tokens ADD COLUMN scopes TEXT NOT NULL DEFAULT 'mcp tasks'",
        "ALTER TABLE tokens ADD COLUMN last_used_at <integer>",
        "CREATE INDEX tokens_of_principal ON tokens (principal_id, number)",
        # All together under '', which stay when a principal goes, and each one's own.
        "ALTER TABLE usage_by_day RENAME TO usage_of_host_by_day",
        f"""CREATE TABLE usage_by_day (
            principal_id <id> NOT NULL DEFAULT '',
            day <id> NOT NULL,
            shard INTEGER NOT NULL,
            {SPENT},
            PRIMARY KEY (principal_id, day, shard)
        ) <by key>""",
        "INSERT INTO usage_by_day SELECT '', h.* FROM usage_of_host_by_day AS h",
        "INSERT INTO usage_by_day SELECT 'operator', h.* FROM usage_of_host_by_day AS h",
        "DROP TABLE usage_of_host_by_day",
    ),
    postgres=PRINCIPALS_OF_TOOLS,
)

CHAINS: Final = Migration(
    (
        "ALTER TABLE runs ADD COLUMN root_id <id>",
        "ALTER TABLE runs ADD COLUMN previous_id <id>",
        "ALTER TABLE runs ADD COLUMN spent_tokens <integer> NOT NULL DEFAULT 0",
        "ALTER TABLE runs ADD COLUMN spent_microdollars <integer> NOT NULL DEFAULT 0",
        "CREATE UNIQUE INDEX one_next_run ON runs (previous_id) WHERE previous_id IS NOT NULL",
    )
)
"""Runs that continue each other: the first one, the one before, and what all up to here have spent."""

RENEWALS: Final = Migration(
    ("ALTER TABLE mcp_sign_ins ADD COLUMN renewing_until <integer> NOT NULL DEFAULT 0",)
)

APPROVALS: Final = Migration(
    (
        """CREATE TABLE approvals (
            number <number>,
            id <id> NOT NULL UNIQUE,
            conversation_id <id> NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
            run_id <id> NOT NULL,
            kind TEXT NOT NULL,
            call_id TEXT NOT NULL,
            tool TEXT NOT NULL,
            input TEXT NOT NULL,
            input_sha256 TEXT NOT NULL,
            base_sha256 TEXT,
            reason TEXT NOT NULL,
            status TEXT NOT NULL,
            remembered INTEGER NOT NULL DEFAULT 0,
            created_at <integer> NOT NULL,
            expires_at <integer>,
            decided_at <integer>,
            decided_by TEXT,
            message TEXT,
            ended_at <integer>
        ) <table>""",
        "CREATE INDEX approvals_open ON approvals (conversation_id) WHERE ended_at IS NULL",
        "CREATE INDEX approvals_due ON approvals (expires_at) WHERE status = 'pending'",
        "CREATE INDEX approvals_of_conversation ON approvals (conversation_id, number)",
        "ALTER TABLE runs ADD COLUMN asked TEXT",
        "ALTER TABLE runs ADD COLUMN ready_at <integer>",
        "CREATE INDEX runs_ready ON runs (ready_at) WHERE ready_at IS NOT NULL",
    )
)
"""Calls that wait for a person; what a run that waits was asked with, and since when it can go on."""

BACKGROUND: Final = Migration(
    (
        "ALTER TABLE runs ADD COLUMN principal_id <id> NOT NULL DEFAULT 'operator'",
        """UPDATE runs SET principal_id =
            (SELECT c.principal_id FROM conversations AS c WHERE c.id = conversation_id)
            WHERE conversation_id IN (SELECT id FROM conversations WHERE principal_id <> 'operator')""",
        "CREATE INDEX runs_of_principal ON runs (principal_id, number, created_at, state, code)",
        "CREATE INDEX runs_of_chain ON runs (root_id) WHERE previous_id IS NOT NULL",
        "ALTER TABLE runs ADD COLUMN again INTEGER",
        "CREATE INDEX runs_to_begin_again ON runs (number) WHERE code = 'retryable' AND again IS NOT NULL",
    )
)
"""Whose each run is, and how often one may be begun again by itself (``ON_ITS_SLOT``: with its slot)."""

TASKS_OF: Final = """FROM scheduled_tasks AS t JOIN conversations AS c ON c.id = t.conversation_id
            WHERE c.principal_id = whose"""

TASK_LIMITS: Final = Migration(
    (),
    postgres=(
        """CREATE FUNCTION task_limit(whose text) RETURNS bigint LANGUAGE sql STABLE SECURITY DEFINER
            AS $$ SELECT (terms::jsonb ->> 'tasks')::bigint FROM principals WHERE id = whose $$""",
        f"""CREATE FUNCTION count_tasks_of(whose text) RETURNS bigint LANGUAGE sql STABLE SECURITY DEFINER
            AS $$ SELECT count(*) {TASKS_OF} $$""",
        # A tool server trims its own principal's alone. Hidden conversations go with their tasks.
        f"""CREATE FUNCTION trim_tasks(whose text) RETURNS SETOF text LANGUAGE sql VOLATILE SECURITY DEFINER
            AS $$ WITH gone AS (DELETE FROM scheduled_tasks WHERE number IN (
                SELECT t.number {TASKS_OF} AND t.status = 'completed' AND (tool_is_main()
                    OR tool_principal() = whose OR pg_has_role(session_user, current_user, 'MEMBER'))
                ORDER BY t.number LIMIT greatest(0, 1 - task_limit(whose) + count_tasks_of(whose)))
            RETURNING id, conversation_id), homes AS (DELETE FROM conversations AS h
                USING gone AS g WHERE h.id = g.conversation_id AND h.temporary = 1 AND h.owner_id = h.id
                AND NOT EXISTS (SELECT 1 FROM scheduled_tasks AS o WHERE o.conversation_id = h.id
                    AND o.id NOT IN (SELECT id FROM gone))
                AND NOT EXISTS (SELECT 1 FROM runs AS r JOIN conversations AS m ON m.id = r.conversation_id
                    WHERE r.state = 'running' AND m.temporary = 1 AND m.owner_id = h.id))
            SELECT conversation_id FROM gone $$""",
        """DO $$ DECLARE name text; BEGIN
            FOREACH name IN ARRAY ARRAY['task_limit(text)', 'count_tasks_of(text)', 'trim_tasks(text)'] LOOP
                EXECUTE format('ALTER FUNCTION %s SET search_path = %I, pg_temp', name, current_schema());
            END LOOP; END $$""",
    ),
)
"""What a principal's limit of tasks takes where a tool server's role sees no principal and not all tasks."""

GATE: Final = Migration(
    (
        "ALTER TABLE approvals ADD COLUMN subagent TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE approvals ADD COLUMN shown TEXT",
        "CREATE INDEX approvals_shown ON approvals (number) WHERE shown IS NOT NULL",
        "CREATE INDEX approvals_by_end ON approvals (ended_at) WHERE ended_at IS NOT NULL",
        """CREATE TABLE stopped_subagents (
            conversation_id <id> NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
            call_id <id> NOT NULL,
            state TEXT NOT NULL,
            PRIMARY KEY (conversation_id, call_id)
        ) <table>""",
    )
)
"""Which subagent's call waits, how far it came (JSON), and the messages of chats that show the request."""

CLIENT_TOOLS: Final = Migration(("ALTER TABLE approvals ADD COLUMN is_error INTEGER NOT NULL DEFAULT 0",))
"""Whether the result that a program gave says that its call failed."""

TYPED_ANSWERS: Final = Migration(
    statements=(
        "ALTER TABLE scheduled_tasks ADD COLUMN output_schema TEXT",
        "ALTER TABLE task_runs ADD COLUMN output TEXT",
    )
)
"""What a task's answers have to be, and those of its runs that were."""
BEGUN_BY: Final = Migration(("ALTER TABLE conversations ADD COLUMN begun_by <id>",))
"""For which conversation another agent began it."""
AUDIT: Final = Migration(
    (
        """CREATE TABLE audit (
            number <number>,
            created_at <integer> NOT NULL,
            action TEXT NOT NULL,
            principal_id <id> NOT NULL,
            subject <id> NOT NULL,
            actor TEXT NOT NULL
        ) <table>""",
        "CREATE INDEX audit_of_principal ON audit (principal_id, number)",
        "CREATE INDEX audit_by_age ON audit (created_at)",
        """UPDATE principals SET created_at = (SELECT coalesce(min(created_at), <now>)
            FROM conversations WHERE principal_id = 'operator') WHERE id = 'operator'""",
    )
)
"""Who did what; and the operator is as old as its first conversation."""

WEBHOOKS: Final = Migration(
    outbox.TABLES,
    sqlite=outbox.sqlite(outbox.WRITTEN),
    postgres=(*outbox.functions(outbox.WRITTEN), *outbox.calls(outbox.WRITTEN)),
)
RESPONSES: Final = Migration(
    (
        """CREATE TABLE responses (
            number <number>,
            id <id> NOT NULL UNIQUE,
            conversation_id <id> NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
            principal_id <id> NOT NULL,
            run_id <id> NOT NULL,
            previous_id <id>,
            made_conversation INTEGER NOT NULL,
            background INTEGER NOT NULL,
            asked TEXT NOT NULL,
            created_at <integer> NOT NULL
        ) <table>""",
        "CREATE INDEX responses_of_conversation ON responses (conversation_id)",
        "CREATE INDEX responses_by_age ON responses (created_at)",
    )
)
"""Which run each response of the Responses door is, and what it was asked (JSON)."""

SENT_FILES: Final = Migration(("ALTER TABLE outbound_messages ADD COLUMN file TEXT",))
"""A file that a message brings, as JSON."""

NEWEST: Final = Migration(
    (
        """CREATE INDEX newest_conversations ON conversations (temporary, last_activity DESC, id DESC)""",
        """CREATE INDEX newest_conversations_of_principal
            ON conversations (principal_id, temporary, last_activity DESC, id DESC)""",
        "DROP INDEX conversations_by_activity",
        "DROP INDEX all_conversations_by_activity",
        "DROP INDEX temporary_by_activity",
        "DROP INDEX conversations_of_principal",
        "DROP INDEX all_conversations_of_principal",
    )
)
"""Two indexes in the place of five: each turn changes every one that has the last activity."""

EVENTS: Final = Migration(outbox.EVENTS, sqlite=outbox.SQLITE, postgres=outbox.POSTGRES)
"""What webhooks are told is one row a turn, whoever hears of it, and its deliveries are made beside turns."""

MIGRATIONS: Final = (
    TRUST,
    TITLES,
    SIGN_INS,
    PRINCIPALS,
    CHAINS,
    RENEWALS,
    APPROVALS,
    BACKGROUND,
    TASK_LIMITS,
    GATE,
    CLIENT_TOOLS,
    TYPED_ANSWERS,
    SENT_FILES,
    BEGUN_BY,
    AUDIT,
    WEBHOOKS,
    RESPONSES,
    NEWEST,
    EVENTS,
)
"""Oldest first; they come after what each engine had before they were written once."""


def in_words(statements: Sequence[str], words: Mapping[str, str]) -> tuple[str, ...]:
    """Return statements with what an engine says for each word in angle brackets."""
    return tuple(WORD.sub(lambda word: words[word[1]], statement).rstrip() for statement in statements)


def steps(
    engine: Literal["sqlite", "postgres"], landed: Sequence[Sequence[str]], words: Mapping[str, str]
) -> tuple[tuple[str, ...], ...]:
    """Return the statements of each of an engine's migrations; ``landed``: its own, before those here."""
    own = ((*each.statements, *getattr(each, engine)) for each in MIGRATIONS)
    return tuple(in_words(statements, words) for statements in (*landed, *own))


def check_not_newer(version: int, known: int) -> None:
    """Raise StoreVersion for a database of a newer program."""
    if version > known:
        raise StoreVersion(
            f"The database has schema version {version}, this program knows {known}: "
            "start the newer program, or restore a backup made by this one."
        )

"""What webhooks are told is written by triggers, in the transaction of what happened, whoever writes it.

A webhook's ``subject`` is whose events it hears: a principal's, ``*`` for everybody's, or of one chain of
runs, by the id of its first. Where there is none, nothing is written. What happened is one row of
``webhook_events`` however many hear of it; as it is deleted (``FAN_OUT``) it becomes a delivery for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

TABLES: Final = (
    """CREATE TABLE webhooks (
        number <number>,
        id <id> NOT NULL UNIQUE,
        principal_id <id> NOT NULL,
        subject <id> NOT NULL,
        url TEXT NOT NULL,
        events TEXT NOT NULL,
        content INTEGER NOT NULL,
        enabled INTEGER NOT NULL DEFAULT 1,
        disabled_reason TEXT,
        secret <bytes> NOT NULL,
        old_secret <bytes>,
        old_secret_until <integer>,
        created_at <integer> NOT NULL,
        failing_since <integer>,
        last_error TEXT
    ) <table>""",
    "CREATE INDEX webhooks_by_subject ON webhooks (subject)",
    "CREATE INDEX webhooks_by_age ON webhooks (created_at)",
    "CREATE INDEX webhooks_of_principal ON webhooks (principal_id, number)",
    """CREATE TABLE webhook_deliveries (
        number <sequence>,
        id <id> NOT NULL UNIQUE,
        webhook_id <id> NOT NULL,
        principal_id <id> NOT NULL,
        conversation_id <id>,
        run_id <id>,
        type TEXT NOT NULL,
        data TEXT,
        created_at <integer> NOT NULL,
        began_at <integer> NOT NULL,
        status TEXT NOT NULL DEFAULT 'waiting',
        attempts <integer> NOT NULL DEFAULT 0,
        not_before <integer> NOT NULL DEFAULT 0,
        owner TEXT NOT NULL DEFAULT '',
        lease_until <integer> NOT NULL DEFAULT 0,
        error TEXT,
        ended_at <integer>
    ) <table>""",
    "CREATE INDEX deliveries_due ON webhook_deliveries (not_before) WHERE status = 'waiting'",
    """CREATE INDEX deliveries_in_order ON webhook_deliveries (webhook_id, conversation_id, number)
        WHERE status = 'waiting'""",
    "CREATE INDEX deliveries_of_webhook ON webhook_deliveries (webhook_id, number)",
    "CREATE INDEX deliveries_about ON webhook_deliveries (conversation_id)",
    "CREATE INDEX deliveries_ended ON webhook_deliveries (ended_at) WHERE ended_at IS NOT NULL",
)

EVENTS: Final = (
    # Without an index: a turn then writes one page more, and the rows are soon gone.
    """CREATE TABLE webhook_events (
        number <number>,
        principal_id <id> NOT NULL,
        conversation_id <id> NOT NULL,
        run_id <id>,
        root_id <id>,
        type TEXT NOT NULL,
        data TEXT,
        created_at <integer> NOT NULL
    ) <table>""",
    """CREATE INDEX webhooks_of_principals ON webhooks (principal_id, number)
        WHERE subject IN (principal_id, '*')""",
    "DROP INDEX webhooks_of_principal",
)
FAN_OUT: Final = "DELETE FROM webhook_events"
"""Makes each event a delivery for every webhook that hears of it."""

ROOT: Final = "(SELECT coalesce(root_id, id) FROM runs WHERE id = new.run_id)"
OPEN_STEP: Final = """SELECT 1 FROM approvals AS a
    WHERE a.conversation_id = new.conversation_id AND a.ended_at IS NULL AND a.kind <> 'budget'"""
ENDED: Final = f"""NOT (coalesce(new.code, '') = 'retryable' AND new.again IS NOT NULL)
    AND (old.state <> new.state OR coalesce(old.code, '') <> coalesce(new.code, '') OR (
        old.again IS NOT NULL AND new.again IS NULL
        AND NOT EXISTS (SELECT 1 FROM runs AS n WHERE n.previous_id = new.id)))
    AND NOT (new.code IN ('retryable', 'shutdown') AND new.previous_id IS NOT NULL
        AND (new.effect_ahead & 1) = 0 AND EXISTS ({OPEN_STEP}))"""
"""A run has an end that nothing goes on after by itself."""

REQUEST: Final = f"""<object>('conversation_id', new.conversation_id, 'run_id', new.run_id,
    'root_run_id', {ROOT}, 'status', new.status, 'request', <object>('id', new.id, 'kind', new.kind,
    'tool', new.tool, 'input', new.input, 'input_sha256', new.input_sha256, 'reason', new.reason,
    'expires_at', new.expires_at))"""
MESSAGE: Final = """<object>('id', new.id, 'conversation_id', new.conversation_id,
    'source_id', new.source_id, 'text', new.text, 'sender', new.sender, 'created_at', new.created_at)"""
HOME: Final = "(SELECT conversation_id FROM scheduled_tasks WHERE id = new.task_id)"
TASK: Final = f"""<object>('task_id', new.task_id, 'conversation_id', coalesce(new.conversation_id, {HOME}),
    'run_id', new.run_id, 'status', new.state, 'result', new.result, 'output', new.output,
    'error', new.error)"""


class Told(NamedTuple):
    """What writes events: a trigger of a table, and the event's values in SQL.

    ``root`` is the first run of the event's chain, ``when`` what it takes beside the trigger's own condition.
    """

    trigger: str
    happens: str
    condition: str
    event: str
    data: str
    at: str
    run: str = "new.run_id"
    root: str = "''"
    conversation: str = "new.conversation_id"
    when: str = "true"

    @property
    def heard(self) -> str:
        """Return where it happened, and which webhooks hear of it."""
        return f"""conversations AS c JOIN webhooks AS w ON w.subject IN (c.principal_id, '*', {self.root})
            WHERE c.id = {self.conversation} AND w.enabled = 1
                AND w.events LIKE '% ' || {self.event} || ' %' AND {self.when}"""

    @property
    def delivered(self) -> str:
        """Return what the trigger did before there were events: wrote the deliveries."""
        return f"""INSERT INTO webhook_deliveries
            (id, webhook_id, principal_id, conversation_id, run_id, type, data, created_at, began_at)
            SELECT 'evt-' || <random>, w.id, c.principal_id, c.id, {self.run}, {self.event}, {self.data},
                {self.at}, {self.at}
            FROM {self.heard}"""

    @property
    def noted(self) -> str:
        """Return what the trigger does."""
        return f"""INSERT INTO webhook_events
            (principal_id, conversation_id, run_id, root_id, type, data, created_at)
            SELECT c.principal_id, c.id, {self.run}, {self.root}, {self.event}, {self.data}, {self.at}
            FROM {self.heard} LIMIT 1"""


PAUSED: Final = "CASE new.state WHEN 'paused' THEN 'run.paused' ELSE 'run.ended' END"
TELLING: Final = (
    Told(
        *("run_told", "UPDATE OF state, code, again ON runs", "new.state <> 'running'"),
        *(PAUSED, "new.answer", "new.finished_at", "new.id", "coalesce(new.root_id, new.id)"),
        when=ENDED,
    ),
    Told(
        *("request_told", "INSERT ON approvals", "new.status = 'pending'"),
        *("'approval.requested'", REQUEST, "new.created_at", "new.run_id", ROOT),
    ),
    Told(
        *("answer_told", "UPDATE OF status ON approvals", "old.status = 'pending'"),
        *("'approval.resolved'", REQUEST, "coalesce(new.decided_at, new.ended_at)", "new.run_id", ROOT),
        when="new.status <> 'pending'",
    ),
    Told(
        *("message_told", "INSERT ON outbound_messages", "new.delivered_at IS NULL"),
        *("'message.created'", MESSAGE, "new.created_at", "NULL"),
    ),
    Told(
        *("task_told", "UPDATE OF finished_at ON task_runs", "new.finished_at IS NOT NULL"),
        *("'task.ended'", TASK, "new.finished_at"),
        conversation=HOME,
        when="old.finished_at IS NULL",
    ),
)

GONE: Final = """UPDATE webhook_deliveries SET
    type = CASE WHEN status IN ('waiting', 'held') THEN 'conversation.deleted' ELSE type END,
    data = CASE WHEN status IN ('waiting', 'held') THEN '{}' END WHERE conversation_id = old.id"""
"""What a deleted conversation said goes with it."""
EVENTS_GONE: Final = "UPDATE webhook_events SET data = NULL WHERE conversation_id = old.id"

Trigger = tuple[str, str, str, str]
"""Its name, when it fires, under what condition, and what it does."""

WRITTEN: Final[tuple[Trigger, ...]] = (
    *((each.trigger, each.happens, each.condition, each.delivered) for each in TELLING),
    ("deletion_told", "DELETE ON conversations", "old.id <> ''", GONE),
)
NOTED: Final[tuple[Trigger, ...]] = (
    *((each.trigger, each.happens, each.condition, each.noted) for each in TELLING),
    ("deletion_told", "DELETE ON conversations", "old.id <> ''", f"{EVENTS_GONE}; {GONE}"),
)


def sqlite(triggers: Sequence[Trigger]) -> tuple[str, ...]:
    """Return what makes the triggers on SQLite."""
    return tuple(
        f"CREATE TRIGGER {name} AFTER {happens} WHEN {condition} BEGIN {statement}; END"
        for name, happens, condition, statement in triggers
    )


def functions(triggers: Sequence[Trigger]) -> tuple[str, ...]:
    """Return what makes, or changes, what the triggers call on PostgreSQL."""
    return tuple(made for name, _, _, statement in triggers for made in _function(name, statement))


def _function(name: str, statement: str) -> tuple[str, str]:
    # With the rights of whoever made it: a tool server's role speaks, and removes hidden conversations.
    return (
        f"""CREATE OR REPLACE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
            AS $$ BEGIN {statement}; RETURN NULL; END $$""",
        f"""DO $$ BEGIN EXECUTE format('ALTER FUNCTION {name}() SET search_path = %I, pg_temp',
            current_schema()); END $$""",
    )


def calls(triggers: Sequence[Trigger]) -> tuple[str, ...]:
    """Return what makes the triggers on PostgreSQL."""
    return tuple(
        f"""CREATE TRIGGER {name} AFTER {happens} FOR EACH ROW
            WHEN ({condition}) EXECUTE FUNCTION {name}()"""
        for name, happens, condition, _ in triggers
    )


def _deliver(event: str, moment: str, source: str) -> str:
    """Return what writes an event's deliveries; their ids begin with the moment, to lie beside each other."""
    return f"""INSERT INTO webhook_deliveries
        (id, webhook_id, principal_id, conversation_id, run_id, type, data, created_at, began_at)
        SELECT 'evt-' || {moment} || substr(<random>, 13), w.id, {event}.principal_id,
            {event}.conversation_id, {event}.run_id,
            CASE WHEN {event}.data IS NULL THEN 'conversation.deleted' ELSE {event}.type END,
            coalesce({event}.data, '{{}}'), {event}.created_at, {event}.created_at
        FROM {source} WHERE w.subject IN ({event}.principal_id, '*', {event}.root_id) AND w.enabled = 1
            AND w.events LIKE '% ' || {event}.type || ' %' ORDER BY {event}.number, w.number"""


SQLITE: Final = (
    *(f"DROP TRIGGER {name}" for name, *_ in NOTED),
    *sqlite(NOTED),
    f"""CREATE TRIGGER event_told AFTER DELETE ON webhook_events
        BEGIN {_deliver("old", "printf('%012x', old.created_at)", "webhooks AS w")}; END""",
)
POSTGRES: Final = (
    *functions(NOTED),
    *_function(
        "event_told", _deliver("gone", "lpad(to_hex(gone.created_at), 12, '0')", "gone, webhooks AS w")
    ),
    """CREATE TRIGGER event_told AFTER DELETE ON webhook_events REFERENCING OLD TABLE AS gone
        FOR EACH STATEMENT EXECUTE FUNCTION event_told()""",
)

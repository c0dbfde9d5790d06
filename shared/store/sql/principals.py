"""Principals: who they are and what they may, and how all that is theirs goes with them."""

from collections.abc import Sequence
from dataclasses import fields, replace
from functools import partial
from operator import itemgetter
from typing import Final

from shared.clock import iso
from shared.errors import Conflict, Duplicate, NotFound, Suspended
from shared.principals import OPERATOR, Principal, PrincipalStatus, PrincipalUse, Terms
from shared.store import rows
from shared.store.contract import Taken, Tx
from shared.store.rows import Noun, writes
from shared.store.sql import audit
from shared.store.sql.conversations import remove_page
from shared.store.sql.task_rows import FREE, WAITS_FOR_PRINCIPAL
from shared.store.sql.usage import DAY, TOKENS
from shared.values import Page

COLUMNS: Final = tuple(field.name for field in fields(Principal))
PREFIXED: Final = {name: f"principal_{name}" for name in COLUMNS}
BEARER_COLUMNS: Final = ", ".join(f"p.{name} AS {prefixed}" for name, prefixed in PREFIXED.items())
"""The columns of ``principals AS p`` for ``to_bearer``, beside those of another table."""

to_principal: Final = rows.reader(Principal, status=PrincipalStatus, terms=Terms.from_stored)
to_bearer: Final = rows.reader(Principal, PREFIXED, status=PrincipalStatus, terms=Terms.from_stored)

CHANGE: Final = """UPDATE principals SET name = $3, status = $4, terms = $5, issuer = $6, subject = $7,
    revision = revision + 1 WHERE id = $1 AND revision = $2 AND status IN ('active', 'suspended')"""
WAKE: Final = f"""UPDATE scheduled_tasks SET waits = {FREE} WHERE waits = {WAITS_FOR_PRINCIPAL}
    AND conversation_id IN (SELECT id FROM conversations WHERE principal_id = $1)"""
UNSENT: Final = """DELETE FROM channel_deliveries WHERE ended_at IS NULL AND conversation_id IN
    (SELECT id FROM conversations WHERE principal_id = $1)"""
DROP: Final = """UPDATE approvals SET status = 'dropped', decided_at = coalesce(decided_at, $2), ended_at = $2
    WHERE ended_at IS NULL AND conversation_id IN (SELECT id FROM conversations WHERE principal_id = $1)"""
CANCEL: Final = """UPDATE runs SET cancel_asked = 1 WHERE state = 'running' AND conversation_id IN
    (SELECT id FROM conversations WHERE principal_id = $1)"""

AT_ONCE: Final = 100
"""Principals that are looked at for rows to delete: most have a run that is ending, if any."""

NO_UID: Final = "No user id is free for another principal: widen the range, or delete principals"


class Principals(Noun):
    """Principals. A deleted one's row stays as a tombstone until retention removes it."""

    async def add(self, principal: Principal, uids: Sequence[int] = ()) -> Principal:
        """Store a principal with the first of ``uids`` that nobody has.

        Raises Duplicate (its id or its subject), Conflict ``no_uid``.
        """

        async def work(tx: Tx) -> Principal:
            await tx.lock("principals", "uids")
            added = replace(principal, uid=await _free_uid(tx, uids)) if uids else principal
            values = {name: getattr(added, name) for name in COLUMNS} | {"terms": added.terms.stored()}
            await tx.execute(rows.insertion("principals", COLUMNS), *values.values())
            await audit.note(tx, "principal.created", added.id, added.id)
            return added

        try:
            return await self._engine.write(work)
        except Taken:
            raise Duplicate("subject: belongs to another principal") from None

    async def get(self, principal_id: str) -> Principal | None:
        """Return the principal, or its tombstone, or None."""
        return await self._one(to_principal, "SELECT * FROM principals WHERE id = $1", principal_id)

    async def some(self, principal_ids: Sequence[str]) -> dict[str, Principal]:
        """Return those of these principals that there are, tombstones too, by id."""
        statement = "SELECT * FROM principals WHERE id = ANY($1::text[])"
        return {each.id: each for each in await self._all(to_principal, statement, [*set(principal_ids)])}

    async def by_subject(self, issuer: str, subject: str) -> Principal | None:
        """Return the newest principal that signed tokens name so; it may be a tombstone."""
        statement = "SELECT * FROM principals WHERE issuer = $1 AND subject = $2"
        # There is an index of those that live.
        living = await self._one(to_principal, f"{statement} AND status <> 'deleted'", issuer, subject)
        newest = f"{statement} ORDER BY number DESC LIMIT 1"
        return living or await self._one(to_principal, newest, issuer, subject)

    async def page(self, *, limit: int, cursor: str | None) -> Page[Principal]:
        """Return principals that are not deleted, in the order they were made."""
        (after,) = rows.decode_cursor(cursor, int) or [0]
        statement = """SELECT * FROM principals WHERE number > $2 AND status <> 'deleted'
            ORDER BY number LIMIT $1"""
        return await self._page(to_principal, ("number",), statement, limit, after)

    async def change(self, principal: Principal) -> Principal:
        """Store its name, status, terms, issuer and subject.

        Suspending it cancels its runs and lets its tasks wait until it is active again.

        Raises Conflict when it was changed since it was read or is being deleted, Duplicate (its subject).
        """

        async def work(tx: Tx) -> None:
            new = principal
            before = await tx.fetchval("SELECT status FROM principals WHERE id = $1 FOR UPDATE", new.id)
            values = (new.name, new.status, new.terms.stored(), new.issuer, new.subject)
            if not await tx.execute(CHANGE, new.id, new.revision, *values):
                raise Conflict(
                    f"{new.id} was changed meanwhile, or is being deleted; read it and try again",
                    code="changed",
                )
            suspended = new.status is PrincipalStatus.SUSPENDED
            await tx.execute(CANCEL if suspended else WAKE, new.id)
            what = "suspended" if suspended and before != new.status else "changed"
            await audit.note(tx, f"principal.{what}", new.id, new.id)

        try:
            await self._engine.write(work)
        except Taken:
            raise Duplicate("subject: belongs to another principal") from None
        return replace(principal, revision=principal.revision + 1)

    @writes()
    async def begin_deletion(self, tx: Tx, principal_id: str, now: int) -> Principal:
        """End its tokens, runs, requests and unsent messages at once; the rest goes by ``delete_some``.

        Raises NotFound, and Conflict ``operator``.
        """
        if principal_id == OPERATOR:
            raise Conflict("The operator can't be deleted", code="operator")

        statement = """UPDATE principals SET status = 'deleting', deleted_at = coalesce(deleted_at, $2),
            revision = revision + 1 WHERE id = $1 AND status <> 'deleted' RETURNING *"""
        row = await tx.fetchrow(statement, principal_id, now)
        if row is None:
            raise NotFound(f"principal not found: {principal_id}")
        await tx.execute(DROP, principal_id, now)
        await audit.note(tx, "principal.deleted", principal_id, principal_id)
        for statement in ("DELETE FROM tokens WHERE principal_id = $1", UNSENT, CANCEL, *UNTOLD):
            await tx.execute(statement, principal_id)
        return to_principal(row)

    async def departing(self, limit: int) -> list[Principal]:
        """Return principals that are being deleted, and what is left of those that are, oldest first."""
        statement = (
            "SELECT * FROM principals WHERE status IN ('deleting', 'deleted') ORDER BY number LIMIT $1"
        )
        return await self._all(to_principal, statement, limit)

    async def delete_some(self, limit: int) -> int:
        """Remove about ``limit`` rows of a principal that is being deleted, and return how many went.

        0: none is being deleted, or their runs have not ended yet.
        """
        find = "SELECT id FROM principals WHERE status = 'deleting' ORDER BY number LIMIT $1"
        for principal_id in await self._all(itemgetter("id"), find, AT_ONCE):
            work = partial(remove_some, principal_id=principal_id, limit=limit)
            if gone := await self._engine.write(work, long=True):
                return gone
        return 0

    async def used(self, principal_id: str, now: int) -> PrincipalUse:
        """Return what the principal has, and what it spent on the day of ``now``."""
        sums = await self._engine.read(lambda tx: tx.fetchrow(USED, principal_id, iso(now)[:DAY]))
        return to_use(rows.there(sums))

    async def by_status(self) -> dict[str, int]:
        """Return how many principals there are in each status, the operator among them."""
        statement = "SELECT status, count(*) AS number FROM principals GROUP BY status"
        return dict(await self._all(itemgetter("status", "number"), statement))

    async def remains(self, principal_id: str) -> dict[str, int]:
        """Return how many rows of the principal each table has, itself and its tombstone left out."""
        return await self._engine.read(partial(remains_of, principal_id=principal_id), long=True)


OF_IT: Final = "JOIN conversations AS c ON c.id = t.conversation_id WHERE c.principal_id = $1"
USED: Final = f"""SELECT
    (SELECT count(*) FROM conversations WHERE principal_id = $1 AND temporary = 0) AS conversations,
    (SELECT max(last_activity) FROM conversations WHERE principal_id = $1) AS last_activity,
    (SELECT count(*) FROM scheduled_tasks AS t {OF_IT} AND t.status = 'active') AS tasks,
    (SELECT count(*) FROM runs AS t {OF_IT} AND t.state = 'running') AS running,
    coalesce(sum({TOKENS}), 0)::bigint AS tokens, coalesce(sum(microdollars), 0)::bigint AS microdollars
    FROM usage_by_day WHERE principal_id = $1 AND day = $2"""
to_use: Final = rows.reader(PrincipalUse)


async def lives(tx: Tx, principal_id: str) -> bool:
    """Return whether the principal is active; it stays so, or not, until the transaction ends."""
    if principal_id == OPERATOR:
        return True
    status = await tx.fetchval("SELECT status FROM principals WHERE id = $1 FOR SHARE", principal_id)
    return bool(status == PrincipalStatus.ACTIVE)


async def check_lives(tx: Tx, principal_id: str) -> None:
    """Raise Suspended unless the principal is active; it stays so until the transaction ends."""
    if not await lives(tx, principal_id):
        raise Suspended(principal_id)


async def _free_uid(tx: Tx, uids: Sequence[int]) -> int:
    rows_with_one = await tx.fetch("SELECT uid FROM principals WHERE uid IS NOT NULL")
    taken = {row["uid"] for row in rows_with_one}
    free = next((uid for uid in uids if uid not in taken), None)
    if free is None:
        raise Conflict(NO_UID, code="no_uid")
    return free


# Nothing begins for a principal that is being deleted, so a conversation without a run stays without.
IDLE: Final = """SELECT id FROM conversations AS c WHERE principal_id = $1 AND NOT EXISTS (
    SELECT 1 FROM runs WHERE conversation_id = c.id AND state = 'running')
    ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED"""

WITH_CONVERSATION: Final = (
    "DELETE FROM channel_updates WHERE conversation_id = $1",
    "DELETE FROM idempotency_keys WHERE conversation_id = $1",
    "DELETE FROM conversations WHERE id = $1",
)
"""Foreign keys take the rest along."""
AT_LEAST: Final = 10
"""Rows that a conversation counts for: its tasks, events and usage go with it."""

UNTOLD: Final = (
    "DELETE FROM webhook_events WHERE principal_id = $1",
    """DELETE FROM webhook_deliveries WHERE principal_id = $1
        OR webhook_id IN (SELECT id FROM webhooks WHERE principal_id = $1)""",
    "DELETE FROM webhooks WHERE principal_id = $1",
)
"""A principal that is being deleted is told nothing any more, and nothing is told of it."""

AT_LAST: Final = (
    *UNTOLD,
    "DELETE FROM tokens WHERE principal_id = $1",
    "DELETE FROM usage_by_day WHERE principal_id = $1",
    "DELETE FROM gone_conversations WHERE principal_id = $1",
    # The next character after "+" is ",".
    "DELETE FROM idempotency_keys WHERE route >= $1 || '+' AND route < $1 || ','",
    """UPDATE principals SET status = 'deleted', name = '', terms = '{}', revision = revision + 1
        WHERE id = $1""",
)

OF_CONVERSATIONS: Final = (
    "messages", "runs", "compactions", "scheduled_tasks", "outbound_messages", "usage_by_conversation",
    "channel_chats", "channel_updates", "channel_deliveries",
)  # fmt: skip
LOOKED_FOR: Final = {
    **{
        table: f"""SELECT count(*) FROM {table} AS t LEFT JOIN conversations AS c ON c.id = t.conversation_id
            WHERE c.principal_id = $1 OR (t.conversation_id >= $1 || '+' AND t.conversation_id < $1 || ',')"""
        for table in OF_CONVERSATIONS
    },
    **{
        table: f"SELECT count(*) FROM {table} WHERE principal_id = $1"
        for table in (
            "conversations",
            "tokens",
            "usage_by_day",
            "webhooks",
            "webhook_events",
            "webhook_deliveries",
            "gone_conversations",
        )
    },
    "idempotency_keys": """SELECT count(*) FROM idempotency_keys
        WHERE (route >= $1 || '+' AND route < $1 || ',')
            OR conversation_id IN (SELECT id FROM conversations WHERE principal_id = $1)""",
}
"""What counts a principal's rows, by table; what else there is goes with these by foreign keys."""


async def remains_of(tx: Tx, principal_id: str) -> dict[str, int]:
    """Return how many rows of the principal each table has; every table is looked through."""
    return {table: int(await tx.fetchval(count, principal_id)) for table, count in LOOKED_FOR.items()}


async def remove_some(tx: Tx, principal_id: str, limit: int) -> int:
    """Remove some rows of the principal, at last all but its tombstone; 0: a run of it has not ended yet."""
    gone = 0
    while gone < limit:
        conversation_id = await tx.fetchval(IDLE, principal_id)
        if conversation_id is None:
            return gone or await _finish(tx, principal_id)
        removed, more = await remove_page(tx, conversation_id, limit - gone)
        gone += removed
        if more:
            return gone
        for statement in WITH_CONVERSATION:
            gone += AT_LEAST * await tx.execute(statement, conversation_id)
    return gone


async def _finish(tx: Tx, principal_id: str) -> int:
    left = await tx.fetchval("SELECT 1 FROM conversations WHERE principal_id = $1 LIMIT 1", principal_id)
    if left is not None:
        return 0
    return sum([await tx.execute(statement, principal_id) for statement in AT_LAST])

"""What model calls used: counters by day and conversation, and reservations in the runs."""

from dataclasses import fields
from operator import attrgetter, itemgetter
from typing import Final

from shared.clock import iso
from shared.errors import LeaseLost
from shared.store import rows
from shared.store.contract import Row, Tx
from shared.store.rows import Noun
from shared.store.sql.conversations import OF_PRINCIPAL
from shared.usage_values import Amount, DayUsage, Spending, Standing, Usage
from shared.values import Lease, Page

USED: Final = tuple(field.name for field in fields(Usage))
DAY: Final = len("2026-01-31")
"""Characters of an instant's text that name its day (UTC)."""
COUNTED: Final = ("runs", *USED, "unsettled_tokens", "microdollars")


def day_usage(row: Row) -> DayUsage:
    """Read a day of all conversations, or of one."""
    spending = Spending(Usage(*itemgetter(*USED)(row)), row["microdollars"], row["unsettled_tokens"])
    return DayUsage(row["day"], row["conversation_id"], row["runs"], spending)


COLUMNS: Final = ", ".join(COUNTED)
PLACES: Final = ", ".join(f"${number}::bigint" for number in range(2, 2 + len(COUNTED)))
SUMS: Final = ", ".join(f"sum({name})::bigint AS {name}" for name in COUNTED)

ADDED: Final = ", ".join(f"{name} = u.{name} + excluded.{name}" for name in COUNTED)

ALL: Final = ""
"""Whose day it is that all principals' together are; it stays when one of them is deleted."""
COUNTED_FOR: Final = ("conversation", "principal", "day")
"""What has an amount of its own in ``Standing``."""

# In this order in every transaction, so that none waits for another in a circle.
COUNT_DAY: Final = f"""INSERT INTO usage_by_day AS u (principal_id, day, shard, {COLUMNS})
    SELECT w.id, $1, shard(), {PLACES} FROM (SELECT '{ALL}' AS id
        UNION ALL SELECT principal_id FROM conversations WHERE id = ${2 + len(COUNTED)}) AS w WHERE true
    ON CONFLICT (principal_id, day, shard) DO UPDATE SET {ADDED}"""
# An owner that was deleted in the meantime has no row to be counted in; the day's total has it.
COUNT_CONVERSATION: Final = f"""INSERT INTO usage_by_conversation AS u (conversation_id, day, {COLUMNS})
    SELECT owner.id, $1, {PLACES} FROM conversations AS own
    JOIN conversations AS owner ON owner.id = own.owner_id WHERE own.id = ${2 + len(COUNTED)}
    ON CONFLICT (conversation_id, day) DO UPDATE SET {ADDED}"""

TOKENS: Final = """(input_tokens + output_tokens + cache_creation_input_tokens + cache_read_input_tokens
    + unsettled_tokens)"""
BUSIEST: Final = f"""SELECT principal_id AS id, sum(runs)::bigint AS runs, sum({TOKENS})::bigint AS tokens
    FROM usage_by_day WHERE day = $1 AND principal_id <> '{ALL}'
    GROUP BY principal_id ORDER BY runs DESC, id LIMIT 20"""
# One statement sees one moment: between two, an amount could move from reserved to spent and be missed.
STANDING: Final = f"""WITH own AS (SELECT owner_id, principal_id FROM conversations WHERE id = $1),
    counted AS (
        SELECT CASE WHEN c.owner_id = own.owner_id THEN 1 ELSE 0 END AS conversation,
            CASE WHEN c.principal_id = own.principal_id THEN 1 ELSE 0 END AS principal, 1 AS day,
            r.reserved_tokens AS tokens, r.reserved_microdollars AS microdollars
        FROM own, runs AS r JOIN conversations AS c ON c.id = r.conversation_id
        WHERE r.state = 'running' AND r.reserved_tokens > 0 AND r.id <> $2
        UNION ALL SELECT 1, 0, 0, {TOKENS}, microdollars FROM usage_by_conversation
        WHERE conversation_id = (SELECT owner_id FROM own)
        UNION ALL SELECT 0, 1, 0, {TOKENS}, microdollars FROM usage_by_day
        WHERE principal_id = (SELECT principal_id FROM own) AND day = $3
        UNION ALL SELECT 0, 0, 1, {TOKENS}, microdollars FROM usage_by_day
        WHERE principal_id = '{ALL}' AND day = $3)
    SELECT (SELECT owner_id FROM own) AS owner_id, {
    ", ".join(
        f"coalesce(sum({whose} * {counted}), 0)::bigint AS {whose}_{counted}"
        for whose in COUNTED_FOR
        for counted in ("tokens", "microdollars")
    )
} FROM counted"""


class UsageBook(Noun):
    """What model calls used, by day (UTC) and conversation; a temporary one's counts for its owner.

    Spending is counted by ``runs.append`` and ``runs.finish``, in their own transactions. What was reserved
    for a call counts as spent when its run is cut off before anybody learnt what the call used.
    """

    async def by_day(
        self, *, limit: int, cursor: str | None, principal_id: str | None = None
    ) -> Page[DayUsage]:
        """Return what a principal used, or all together, deleted conversations too, newest day first."""
        where = rows.Where()
        where.add("principal_id = {0}", ALL if principal_id is None else principal_id)
        where.after("day < {0}", cursor, str)
        statement = f"""SELECT NULL AS conversation_id, day, {SUMS} FROM usage_by_day WHERE {where}
            GROUP BY day ORDER BY day DESC LIMIT $1"""
        return await self._page(day_usage, ("day",), statement, limit, *where.values)

    async def busiest(self, now: int) -> list[tuple[str, int, int]]:
        """Return the principals with most runs on the day of ``now``: their ids, runs, tokens."""
        return await self._all(itemgetter("id", "runs", "tokens"), BUSIEST, iso(now)[:DAY])

    async def by_conversation(
        self, *, conversation_id: str | None, limit: int, cursor: str | None, principal_id: str | None = None
    ) -> Page[DayUsage]:
        """Return what each conversation (only one, only a principal's) used each day, newest day first."""
        where = rows.Where()
        where.add("conversation_id = {0}", conversation_id)
        where.add(OF_PRINCIPAL, principal_id)
        where.after("(day, conversation_id) < ({0}, {1})", cursor, str, str)
        statement = f"""SELECT * FROM usage_by_conversation WHERE {where}
            ORDER BY day DESC, conversation_id DESC LIMIT $1"""
        return await self._page(day_usage, ("day", "conversation_id"), statement, limit, *where.values)


async def count(tx: Tx, conversation_id: str, spending: Spending, now: int, *, runs: int = 0) -> None:
    """Add to the counters inside a transaction; a run that spent nothing is still a run."""
    used = attrgetter(*USED)(spending.usage)
    values = (runs, *used, spending.unsettled_tokens, spending.microdollars)
    day = iso(now)[:DAY]
    await tx.execute(COUNT_DAY, day, *values, conversation_id)
    await tx.execute(COUNT_CONVERSATION, day, *values, conversation_id)


async def standing(tx: Tx, lease: Lease, now: int) -> Standing:
    """Return what others spent and reserved of the lease's conversation and day; raises LeaseLost."""
    row = await tx.fetchrow(STANDING, lease.conversation_id, lease.run_id, iso(now)[:DAY])
    if row is None or row["owner_id"] is None:
        raise LeaseLost(lease.run_id)
    amounts = (Amount(row[f"{whose}_tokens"], row[f"{whose}_microdollars"]) for whose in COUNTED_FOR)
    return Standing(*amounts)

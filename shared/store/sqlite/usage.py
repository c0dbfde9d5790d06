"""What model calls used, in SQLite: counters by day and conversation, and reservations in the runs' rows."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any, Final

from shared.errors import LeaseLost
from shared.models import Amount, DayUsage, Lease, Page, Spending, Standing
from shared.store import rows
from shared.store.sqlite.engine import Database
from shared.store.sqlite.lease_clock import lease_now
from shared.store.usage_rows import COUNTED, amount, counts, day_of, day_usage

COLUMNS: Final = ", ".join(COUNTED)
PLACES: Final = ", ".join("?" * len(COUNTED))
ADDED: Final = ", ".join(f"{name} = {name} + excluded.{name}" for name in COUNTED)

COUNT_DAY: Final = f"""INSERT INTO usage_by_day (day, {COLUMNS}) VALUES (?, {PLACES})
    ON CONFLICT DO UPDATE SET {ADDED}"""
# An owner that was deleted in the meantime has no row to be counted in; the day's total has it.
COUNT_CONVERSATION: Final = f"""INSERT INTO usage_by_conversation (conversation_id, day, {COLUMNS})
    SELECT owner.id, ?, {PLACES} FROM conversations AS own
    JOIN conversations AS owner ON owner.id = own.owner_id WHERE own.id = ?
    ON CONFLICT DO UPDATE SET {ADDED}"""

TOKENS: Final = """input_tokens + output_tokens + cache_creation_input_tokens + cache_read_input_tokens
    + unsettled_tokens"""
SPENT_ON_DAY: Final = f"SELECT {TOKENS}, microdollars FROM usage_by_day WHERE day = ?"
SPENT_IN_CONVERSATION: Final = f"""SELECT total({TOKENS}), total(microdollars) FROM usage_by_conversation
    WHERE conversation_id = ?"""
# Only running runs are read: there are as many as the host runs at once.
RESERVED: Final = """SELECT c.owner_id, r.reserved_tokens, r.reserved_microdollars
    FROM runs AS r JOIN conversations AS c ON c.id = r.conversation_id
    WHERE r.state = 'running' AND r.reserved_tokens > 0 AND r.id <> ?"""
RESERVE: Final = """UPDATE runs SET reserved_tokens = ?, reserved_microdollars = ?
    WHERE id = ? AND fence = ? AND lease_owner = ? AND state = 'running' AND lease_until > ?"""


class SqliteUsage:
    """Implements the UsageBook contract."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def reserve(self, lease: Lease, decide: Callable[[Standing], Amount], now: int) -> None:
        """Reserve for the run's next model call; raises LeaseLost, and what ``decide`` raises."""

        def work(connection: sqlite3.Connection) -> None:
            amount = decide(_standing(connection, lease, day_of(now)))
            changed = connection.execute(
                RESERVE,
                (
                    amount.tokens,
                    amount.microdollars,
                    lease.run_id,
                    lease.fence,
                    lease.owner,
                    lease_now(),
                ),
            ).rowcount
            if changed != 1:
                raise LeaseLost(lease.run_id)

        await self._db.write(work)

    async def by_day(self, *, limit: int, cursor: str | None) -> Page[DayUsage]:
        """Return what all conversations used, newest day first."""
        before = rows.decode_cursor(cursor, str)
        where = "WHERE day < ?" if before else ""

        def work(connection: sqlite3.Connection) -> Page[DayUsage]:
            found = connection.execute(
                f"SELECT NULL AS conversation_id, * FROM usage_by_day {where} ORDER BY day DESC LIMIT ?",
                (*(before or ()), limit + 1),
            ).fetchall()
            return rows.page(found, limit, day_usage, lambda row: (row["day"],))

        return await self._db.read(work)

    async def by_conversation(
        self, *, conversation_id: str | None, limit: int, cursor: str | None
    ) -> Page[DayUsage]:
        """Return what each conversation (or only one) used each day, newest day first."""
        before = rows.decode_cursor(cursor, str, str)
        where, values = ["1"], list[Any]()
        if conversation_id is not None:
            where.append("conversation_id = ?")
            values.append(conversation_id)
        if before is not None:
            where.append("(day, conversation_id) < (?, ?)")
            values.extend(before)
        statement = f"""SELECT * FROM usage_by_conversation WHERE {" AND ".join(where)}
            ORDER BY day DESC, conversation_id DESC LIMIT ?"""

        def work(connection: sqlite3.Connection) -> Page[DayUsage]:
            found = connection.execute(statement, (*values, limit + 1)).fetchall()
            return rows.page(found, limit, day_usage, lambda row: (row["day"], row["conversation_id"]))

        return await self._db.read(work)


def count(
    connection: sqlite3.Connection, conversation_id: str, spending: Spending, now: int, *, runs: int = 0
) -> None:
    """Add to the counters inside a transaction; a run that spent nothing is still a run."""
    values = counts(spending, runs)
    day = day_of(now)
    connection.execute(COUNT_DAY, (day, *values))
    connection.execute(COUNT_CONVERSATION, (day, *values, conversation_id))


def _standing(connection: sqlite3.Connection, lease: Lease, day: str) -> Standing:
    owner = connection.execute(
        "SELECT owner_id FROM conversations WHERE id = ?", (lease.conversation_id,)
    ).fetchone()
    if owner is None:
        raise LeaseLost(lease.run_id)
    of_conversation = amount(connection.execute(SPENT_IN_CONVERSATION, (owner[0],)).fetchone())
    of_day = amount(connection.execute(SPENT_ON_DAY, (day,)).fetchone())
    for row in connection.execute(RESERVED, (lease.run_id,)):
        reserved = Amount(row["reserved_tokens"], row["reserved_microdollars"])
        of_day += reserved
        if row["owner_id"] == owner[0]:
            of_conversation += reserved
    return Standing(of_conversation, of_day)

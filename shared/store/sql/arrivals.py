"""Rows that move in from elsewhere: in one transaction, and only what isn't there yet."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from shared.errors import PicoError, StoreError
from shared.store.contract import Engine, Missing, Tx
from shared.store.rows import insertion
from shared.store.sql.chats import SAID

Row = Mapping[str, Any]

_ORDER: Final = """principals conversations messages compactions runs run_events outbound_messages
    scheduled_tasks task_runs approvals stopped_subagents responses usage_by_day usage_by_conversation
    channel_chats channel_updates channel_deliveries tokens tool_pins mcp_sign_ins audit
    webhooks webhook_events webhook_deliveries"""
ORDER: Final = tuple(_ORDER.split())
"""The tables that may move in; whatever points to another comes after it."""
NUMBERED: Final = {"compactions": None, "outbound_messages": "seq"}
"""A table's own counter where it isn't ``number``; None where the rows' numbers mean something."""

KEYLESS: Final = "audit"
"""The table of which no rule of the database keeps the same row from standing twice."""


class Arrivals:
    """Takes rows of other stores."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def take(self, rows: Mapping[str, Sequence[Row]]) -> dict[str, int]:
        """Store the rows of each table that aren't there yet, and return how many those are.

        Raises StoreError, and nothing is changed.
        A conversation that is there keeps what it has: its messages that are new come after those.
        """
        unknown = sorted(rows.keys() - set(ORDER))
        if unknown:
            raise StoreError(f"There is no table {unknown[0]} to move into")

        async def work(tx: Tx) -> dict[str, int]:
            new, there = Counter[str](), await _conversations(tx, rows.get("conversations", ()))
            for table in ORDER:
                for row in rows.get(table, ()):
                    append = table == "messages" and row["conversation_id"] in there
                    if table == "compactions" and row["conversation_id"] in there:
                        continue  # it counts messages that have other places here
                    taken = await (_append(tx, row) if append else _insert(tx, table, row))
                    new[table] += taken
                    if table == "principals" and not taken:
                        await _check_there(tx, row["id"])
            return {table: number for table, number in new.items() if number}

        try:
            return await self._engine.write(work, long=True)
        except Missing:
            raise StoreError("A row belongs to a conversation or task that doesn't move in") from None
        except (StoreError, PicoError):
            raise
        except Exception as error:  # what a database says of a value that has the wrong form differs
            raise StoreError(f"A row can't be stored, so none is: {error}") from error


async def _check_there(tx: Tx, principal_id: str) -> None:
    """Raise StoreError where the principal isn't there and can't be."""
    if await tx.fetchval("SELECT 1 FROM principals WHERE id = $1", principal_id) is None:
        raise StoreError(f"{principal_id} can't move in: its uid, subject or directory is another's here")


async def _conversations(tx: Tx, rows: Sequence[Row]) -> set[str]:
    """Return which of the conversations are there already."""
    find = "SELECT 1 FROM conversations WHERE id = $1 FOR UPDATE"
    return {row["id"] for row in rows if await tx.fetchval(find, row["id"]) is not None}


async def _insert(tx: Tx, table: str, row: Row) -> bool:
    counter = NUMBERED.get(table, "number")
    values = {name: value for name, value in row.items() if name != counter}
    if table == KEYLESS:
        same = " AND ".join(f"{name} = ${number}" for number, name in enumerate(values, start=1))
        if await tx.fetchval(f"SELECT 1 FROM {table} WHERE {same} LIMIT 1", *values.values()) is not None:
            return False
    statement = f"{insertion(table, [*values])} ON CONFLICT DO NOTHING"
    taken = await tx.execute(statement, *values.values()) > 0
    if taken and table == "outbound_messages":
        # Chats that are here already heard it elsewhere; what they didn't hear moves in by itself.
        heard = "DELETE FROM channel_deliveries WHERE conversation_id = $1 AND source = $2"
        await tx.execute(heard, row["conversation_id"], f"{SAID}{row['id']}")
    return taken


async def _append(tx: Tx, row: Row) -> bool:
    if await tx.fetchval("SELECT 1 FROM messages WHERE id = $1", row["id"]) is not None:
        return False
    statement = """UPDATE conversations SET next_seq = next_seq + 1, message_count = message_count + $2,
            last_activity = greatest(last_activity, $3) WHERE id = $1 RETURNING next_seq - 1"""
    seq = await tx.fetchval(
        statement, row["conversation_id"], int(row["text"] is not None), row["created_at"]
    )
    return await _insert(tx, "messages", {**row, "seq": seq})

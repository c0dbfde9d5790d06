"""What the writers of runs share in SQLite: the held row, messages, events, an end without an owner.

Every statement of a run's writer names the run, its fencing number and its owner, and wants the lease to be
alive: a host that was overtaken, or slept through its lease, changes nothing.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from typing import Any, Final

from shared import jsons
from shared.errors import LeaseLost
from shared.models import Event, Lease, Spending
from shared.store.cut_off import cut_off
from shared.store.sqlite import usage
from shared.store.sqlite.lease_clock import lease_now

HELD: Final = "id = ? AND fence = ? AND lease_owner = ? AND state = 'running' AND lease_until > ?"


def hold(connection: sqlite3.Connection, lease: Lease, assignments: str, *values: Any) -> None:
    """Write into the run's row; raises LeaseLost."""
    changed = connection.execute(
        f"UPDATE runs SET {assignments} WHERE {HELD}",
        (*values, lease.run_id, lease.fence, lease.owner, lease_now()),
    ).rowcount
    if changed != 1:
        raise LeaseLost(lease.run_id)


def is_held(connection: sqlite3.Connection, lease: Lease) -> bool:
    """Look without writing: a row that is only looked at costs the volume nothing."""
    statement = f"SELECT 1 FROM runs WHERE {HELD}"
    values = (lease.run_id, lease.fence, lease.owner, lease_now())
    return connection.execute(statement, values).fetchone() is not None


def record_events(connection: sqlite3.Connection, run_id: str, events: Iterable[Event], now: int) -> None:
    """Store events of a run; one that is there already stays as it is."""
    connection.executemany(
        "INSERT OR IGNORE INTO run_events (run_id, seq, name, data, created_at) VALUES (?, ?, ?, ?, ?)",
        [(run_id, event.seq, event.name, jsons.dumps(event.data), now) for event in events],
    )


def end_stale(connection: sqlite3.Connection, conversation_id: str, now: int) -> None:
    """End the conversation's run if its lease ran out."""
    stale = connection.execute(
        "SELECT * FROM runs WHERE conversation_id = ? AND state = 'running' AND lease_until <= ?",
        (conversation_id, lease_now()),
    ).fetchall()
    for row in stale:
        cut_off_run(connection, row, now)


def cut_off_run(connection: sqlite3.Connection, row: sqlite3.Row, now: int) -> None:
    """End a run whose owner is gone, and tell whoever follows its events."""
    ending = cut_off(row)
    connection.execute(
        "UPDATE runs SET state = 'error', finished_at = ?, error = ?, code = ?, answer = ? WHERE id = ?",
        (now, ending.error, ending.code, jsons.dumps(ending.answer), row["id"]),
    )
    unsettled = Spending(microdollars=row["reserved_microdollars"], unsettled_tokens=row["reserved_tokens"])
    usage.count(connection, row["conversation_id"], unsettled, now, runs=1)
    last = connection.execute("SELECT max(seq) FROM run_events WHERE run_id = ?", (row["id"],)).fetchone()[0]
    record_events(connection, row["id"], ending.events(last), now)

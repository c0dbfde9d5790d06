"""What the writers of runs share: events, and an end without an owner."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from shared import jsons
from shared.store.contract import Tx
from shared.store.rows import Row
from shared.store.sql import usage
from shared.values import Event, Spending

RECOVERED_SEQ_GAP: Final = 1_000_000
"""A recovered run's last event leaves this gap: a reader may have seen events that were not stored yet."""

AHEAD: Final = 1
"""Bit of a run's ``effect_ahead``: the next thing that happens may have an outward effect."""
ACTED: Final = 2
"""Bit of a run's ``effect_ahead``: a step of it had one, or may have had one."""

INTERRUPTED: Final = (
    "The host stopped while this run was in flight. Its last step may have had an effect, so it was not "
    "repeated; its finished steps are in the history."
)
RETRYABLE: Final = (
    "The host stopped while this run was in flight. Its last step had no outward effect: "
    "sending the message again is safe."
)


@dataclass(frozen=True, slots=True)
class CutOff:
    """How a run ends whose owner is gone."""

    error: str
    code: str
    answer: dict[str, Any]

    def events(self, last_seq: int | None) -> tuple[Event, Event]:
        """Return the last two events of the run whose newest stored one is ``last_seq``."""
        seq = (last_seq or 0) + RECOVERED_SEQ_GAP
        told = Event(seq, "error", {"error": self.error, "code": self.code})
        return told, Event(seq + 1, "done", self.answer)


def cut_off(row: Row) -> CutOff:
    """Return how the run in this row of ``runs`` ends: its last step may be repeated, or may not."""
    error, code = (INTERRUPTED, "interrupted") if row["effect_ahead"] & AHEAD else (RETRYABLE, "retryable")
    answer = {
        "status": "error",
        "conversation_id": row["conversation_id"],
        "message_id": row["message_id"],
        "run_id": row["id"],
        "error": error,
        "code": code,
    }
    return CutOff(error, code, answer)


async def record_events(tx: Tx, run_id: str, events: Iterable[Event], now: int) -> None:
    """Store events of a run; one that is there already stays as it is."""
    await tx.executemany(
        """INSERT INTO run_events (run_id, seq, name, data, created_at) VALUES ($1, $2, $3, $4, $5)
        ON CONFLICT DO NOTHING""",
        [(run_id, event.seq, event.name, jsons.dumps(event.data), now) for event in events],
    )


async def cut_off_run(tx: Tx, row: Row, now: int) -> None:
    """End a run whose owner is gone, and tell whoever follows its events."""
    ending = cut_off(row)
    await tx.execute(
        """UPDATE runs SET state = 'error', finished_at = $2, error = $3, code = $4, answer = $5
        WHERE id = $1""",
        row["id"],
        now,
        ending.error,
        ending.code,
        jsons.dumps(ending.answer),
    )
    last = await tx.fetchval("SELECT max(seq) FROM run_events WHERE run_id = $1", row["id"])
    await record_events(tx, row["id"], ending.events(last), now)
    unsettled = Spending(microdollars=row["reserved_microdollars"], unsettled_tokens=row["reserved_tokens"])
    await usage.count(tx, row["conversation_id"], unsettled, now, runs=1)

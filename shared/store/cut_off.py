"""What is told of a run whose owner is gone: to the row, and to whoever follows its events."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from shared.models import Event
from shared.store.rows import Row

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

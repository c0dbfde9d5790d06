"""What becomes of slots that nobody ran in time (tasks contract: "Catch-up after downtime")."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from shared.schedules import Schedule, slot_after
from shared.task_values import CatchUp

ON_TIME_MS: Final = 120_000
"""How late a slot may be and still be on time: twice the minute in which outside schedulers tick. Then it is
overdue."""

MOST_CAUGHT_UP: Final = 100
"""How many missed slots ``all`` runs before it goes on with the future."""


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether the slot runs, which slot comes next, and how many missed ones ran in a row so far."""

    run: bool
    next_slot: int | None
    caught_up: int


def decide(schedule: Schedule, policy: CatchUp, slot: int, now: int, caught_up: int) -> Decision:
    """Decide about a slot that is due.

    A slot counts as missed when the one after it has come as well, or when it is later than ON_TIME_MS. A
    ``once`` task has no later slot to skip to, so it always runs.
    """
    following = slot_after(schedule, slot, slot)
    overtaken = following is not None and following <= now
    if policy == "skip" and following is not None and (overtaken or now - slot > ON_TIME_MS):
        return Decision(False, slot_after(schedule, slot, now), 0)
    if not overtaken:
        return Decision(True, following, 0)
    if policy == "all" and caught_up + 1 < MOST_CAUGHT_UP:
        return Decision(True, following, caught_up + 1)
    return Decision(True, slot_after(schedule, slot, now), 0)

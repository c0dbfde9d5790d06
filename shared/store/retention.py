"""How long what is kept, whatever the engine (storage contract, promise 8)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

DAY_MS: Final = 24 * 3600 * 1000

KEY_LIFE_MS: Final = DAY_MS
"""How long an idempotency key is kept, in milliseconds (http-api: "Idempotency")."""


@dataclass(frozen=True, slots=True)
class Retention:
    """Delivered outbound messages, run events, channels' ended work in milliseconds; run logs in rows."""

    outbound_ms: int = 7 * DAY_MS
    task_log: int = 100
    events_ms: int = DAY_MS
    updates_ms: int = 7 * DAY_MS

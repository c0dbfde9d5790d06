"""Rows of usage to values, and the other way round."""

from __future__ import annotations

from typing import Final

from shared.clock import iso
from shared.models import Amount, DayUsage, Spending, Usage
from shared.store.rows import Row

COUNTED: Final = (
    "runs",
    "input_tokens",
    "output_tokens",
    "cache_creation_input_tokens",
    "cache_read_input_tokens",
    "unsettled_tokens",
    "microdollars",
)


def day_of(now: int) -> str:
    """Return the UTC day of an instant, such as ``2026-01-31``."""
    return iso(now)[:10]


def counts(spending: Spending, runs: int) -> tuple[int, ...]:
    """Return what is added to the counters, in the order of COUNTED."""
    used = spending.usage
    return (
        runs,
        used.input_tokens,
        used.output_tokens,
        used.cache_creation_input_tokens,
        used.cache_read_input_tokens,
        spending.unsettled_tokens,
        spending.microdollars,
    )


def amount(row: Row | None) -> Amount:
    """Read tokens and microdollars."""
    return Amount() if row is None else Amount(int(row[0]), int(row[1]))


def day_usage(row: Row) -> DayUsage:
    """Read a day of all conversations, or of one."""
    usage = Usage(
        row["input_tokens"],
        row["output_tokens"],
        row["cache_creation_input_tokens"],
        row["cache_read_input_tokens"],
    )
    spending = Spending(usage, row["microdollars"], row["unsettled_tokens"])
    return DayUsage(row["day"], row["conversation_id"], row["runs"], spending)

"""The lease clock of the embedded engine."""

from __future__ import annotations

import time


def lease_now() -> int:
    """Return the lease clock in milliseconds: since boot, so that a change of wall clock moves no lease."""
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime_ns(clock) // 1_000_000

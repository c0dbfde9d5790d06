"""What the host counts. Plain numbers on the way, Prometheus only when somebody asks."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
"""Upper bounds of the buckets of durations, in seconds."""


@dataclass(slots=True)
class Durations:
    """How often something took how long."""

    bounds: Sequence[float] = SECONDS
    counts: list[int] = field(default_factory=lambda: [0] * (len(SECONDS) + 1))
    total: float = 0.0

    def add(self, seconds: float) -> None:
        """Count one."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total += seconds

    def buckets(self) -> list[tuple[str, float]]:
        """Return cumulative counts by upper bound, as Prometheus wants them."""
        names = [*(str(bound) for bound in self.bounds), "+Inf"]
        so_far = 0
        found: list[tuple[str, float]] = []
        for name, count in zip(names, self.counts, strict=True):
            so_far += count
            found.append((name, so_far))
        return found


@dataclass(slots=True)
class Metrics:
    """Counters of this process. Labels come from small fixed sets: no path, id or sender."""

    http_requests: Counter[tuple[str, str]] = field(default_factory=Counter)
    request_seconds: Durations = field(default_factory=Durations)
    runs: Counter[str] = field(default_factory=Counter)
    run_seconds: Durations = field(default_factory=Durations)
    tokens: Counter[str] = field(default_factory=Counter)
    task_runs: Counter[str] = field(default_factory=Counter)
    compactions: Counter[str] = field(default_factory=Counter)
    outputs: Counter[str] = field(default_factory=Counter)
    """Answers of a promised shape, by what became of them."""
    approvals_requested: Counter[str] = field(default_factory=Counter)
    approvals_decided: Counter[tuple[str, str]] = field(default_factory=Counter)
    asks: Counter[str] = field(default_factory=Counter)
    responses: Counter[str] = field(default_factory=Counter)
    attachments: Counter[str] = field(default_factory=Counter)
    file_bytes: Counter[str] = field(default_factory=Counter)
    files_refused: Counter[str] = field(default_factory=Counter)
    file_streams: int = 0
    """Files that move in or out now."""
    webhook_deliveries: Counter[str] = field(default_factory=Counter)
    connections: int = 0
    """Open now."""
    connections_cut: Counter[str] = field(default_factory=Counter)
    """Ended by the host, by reason."""

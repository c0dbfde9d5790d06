"""What the host tells about itself: its counts, and OpenTelemetry if an endpoint is set (docs/telemetry.md).

Counts are plain numbers on the way; they become Prometheus' only when somebody asks.
"""

from __future__ import annotations

import importlib
from bisect import bisect_left
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence, Set
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar

from shared.errors import Misconfigured
from shared.redact import Redactor
from shared.settings import Settings

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from host.ports import Ask, ToolResult, Toolset

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


Converse = TypeVar("Converse", bound=Callable[..., Awaitable[None]])
"""Works on a run: takes what is asked (``scheduled``), the lease, who hears (``model``, ``meter``), more."""


class Telemetry:
    """Tells nothing. ``host.telemetry.otel`` has one that tells OpenTelemetry."""

    def app(self, app: ASGIApp, *, probes: Set[str], methods: Set[str]) -> ASGIApp:
        """Return the application; its requests are told, but for those of the ``probes``' paths.

        A method that is none of ``methods`` is not told by its name.
        """
        return app

    def run(self, converse: Converse) -> Converse:
        """Return what works on a run; its runs are told."""
        return converse

    def ask(self, ask: Ask) -> Ask:
        """Return the way to a model; its replies are told."""
        return ask

    async def call(self, toolset: Toolset, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        """Call a tool, and tell of it."""
        return await toolset.call(name, arguments)


OFF: Final = Telemetry()


NOT_INSTALLED: Final = (
    "OTEL_EXPORTER_OTLP_ENDPOINT is set, but OpenTelemetry is not installed: pip install 'picoclaw[otel]'"
)


@asynccontextmanager
async def open_telemetry(settings: Settings, redactor: Redactor) -> AsyncIterator[Telemetry]:
    """Yield what tells about this host; what is left to send is sent at the end. Raises Misconfigured."""
    if settings.telemetry.endpoint is None:
        yield OFF
        return
    try:
        otel = importlib.import_module("host.telemetry.otel")
    except ImportError as error:
        raise Misconfigured(NOT_INSTALLED) from error
    telemetry = otel.OpenTelemetry(settings, redactor)
    try:
        yield telemetry
    finally:
        await telemetry.aclose()

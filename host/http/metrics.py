"""GET /metrics: the counters as Prometheus text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import anyio.to_thread
from starlette.requests import Request
from starlette.responses import Response

from host.http.routing import Api, operation
from host.runs.service import RunService
from host.telemetry.counts import Metrics
from shared.clock import now_ms
from shared.errors import Unavailable
from shared.store.sql.task_rows import TaskMetrics
from shared.store.store import Store, StoreCounts

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

CONTENT_TYPE: Final = "text/plain; version=1.0.0; charset=utf-8; escaping=underscores"


class MetricsApi(Api):
    """Renders the host's counters and the store's figures."""

    def __init__(
        self,
        metrics: Metrics,
        store: Store,
        runs: RunService,
    ) -> None:
        self._metrics = metrics
        self._store = store
        self._runs = runs

    @operation("GET", "/metrics", content="text/plain")
    async def get(self, request: Request) -> Response:
        """The counters, for Prometheus.

        Those of a store that doesn't answer are left out.
        """
        stored: tuple[StoreCounts, TaskMetrics] | None = None
        with suppress(Unavailable):
            stored = await self._store.counts(), await self._store.tasks.metrics(now_ms())
        # The library takes 40 ms to import, so it is loaded by the first who asks, off the event loop.
        text = await anyio.to_thread.run_sync(self._render, stored)
        return Response(text, headers={"Content-Type": CONTENT_TYPE})

    def _render(self, stored: tuple[StoreCounts, TaskMetrics] | None) -> bytes:
        from prometheus_client import generate_latest
        from prometheus_client.registry import Collector, CollectorRegistry

        metrics = [*self._counted(), *self._measured(stored)]

        class Given(Collector):
            def collect(self) -> Iterable[Metric]:
                return metrics

        registry = CollectorRegistry()
        registry.register(Given())
        return generate_latest(registry)

    def _counted(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

        own = self._metrics
        requests = CounterMetricFamily(
            "picoclaw_http_requests", "Answered requests", labels=["method", "status"]
        )
        for (method, status), number in own.requests.items():
            requests.add_metric([method, str(status)], number)
        yield requests
        counted = (
            ("picoclaw_runs", "Ended runs", "status", own.runs),
            ("picoclaw_tokens", "Tokens of the model", "kind", own.tokens),
            ("picoclaw_task_runs", "Ended task runs", "status", own.task_runs),
            (
                "picoclaw_compactions",
                "Conversations shortened for the model",
                "kind",
                own.compactions,
            ),
            (
                "picoclaw_connections_cut",
                "Connections that the host ended",
                "reason",
                own.connections_cut,
            ),
        )
        for name, help_text, label, counter in counted:
            family = CounterMetricFamily(name, help_text, labels=[label])
            for value, number in counter.items():
                family.add_metric([value], number)
            yield family
        measured = (
            ("picoclaw_http_request_seconds", "Time to answer a request", own.request_seconds),
            ("picoclaw_run_seconds", "Time of a run", own.run_seconds),
        )
        for name, help_text, durations in measured:
            histogram = HistogramMetricFamily(name, help_text)
            histogram.add_metric([], durations.buckets(), durations.total)
            yield histogram

    def _measured(self, stored: tuple[StoreCounts, TaskMetrics] | None) -> Iterator[Metric]:
        from prometheus_client.core import GaugeMetricFamily

        gauges: list[tuple[str, str, float]] = [
            ("picoclaw_connections", "Open connections", self._metrics.connections),
            ("picoclaw_active_runs", "Runs in flight on this host", self._runs.active_count),
            ("picoclaw_waiting_runs", "Requests that wait for a place to run", self._runs.waiting_count),
            ("picoclaw_store_durable", "Whether the store can be written", int(self._store.volume_ok())),
        ]
        if stored is not None:
            counts, tasks = stored
            gauges += [
                ("picoclaw_conversations", "Conversations in the store", counts.conversations),
                ("picoclaw_tasks", "Scheduled tasks in the store", counts.tasks),
                ("picoclaw_tasks_due", "Tasks that are due now", tasks.due),
                ("picoclaw_tasks_running", "Slots that are being run", tasks.running),
                ("picoclaw_tasks_overdue_seconds", "How late the oldest due task is", tasks.overdue_seconds),
            ]
        for name, help_text, value in gauges:
            yield GaugeMetricFamily(name, help_text, value=value)

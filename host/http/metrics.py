"""What was used and counted: GET /usage by day and conversation, GET /metrics as Prometheus text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NotRequired

import anyio.to_thread
from starlette.requests import Request
from starlette.responses import Response

from host.http.callers import caller_of
from host.http.conversations import asked_for, say_whose
from host.http.routing import OF_CONVERSATION, OF_PRINCIPAL, PAGE, Api, Parameter, operation, page_of
from host.runs.service import RunService
from host.runs.spec import UsageShape
from host.telemetry import Metrics
from shared.approval_values import Waiting
from shared.clock import now_ms
from shared.errors import Unavailable
from shared.shapes import PageShape, view
from shared.store.sql.task_rows import TaskMetrics
from shared.store.store import Store, StoreCounts
from shared.usage_values import DayUsage
from shared.webhook_values import WebhookFigures

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

Busiest = Sequence[tuple[str, int, int]]
Stored = tuple[StoreCounts, TaskMetrics, Mapping[str, int], Waiting, WebhookFigures, Busiest]
"""What the store counts: rows, tasks, principals by status, what waits, for webhooks too, who does most."""

CONTENT_TYPE: Final = "text/plain; version=1.0.0; charset=utf-8; escaping=underscores"

COUNTED: Final = (
    ("http_requests", "Answered requests", "method", "status"),
    ("runs", "Ended runs", "status"),
    ("tokens", "Tokens of the model", "kind"),
    ("task_runs", "Ended task runs", "status"),
    ("compactions", "Conversations shortened for the model", "kind"),
    ("outputs", "Answers that a schema was given for", "result"),
    ("approvals_requested", "Requests for a person's word", "kind"),
    ("approvals_decided", "Answers of people", "kind", "decision"),
    ("asks", "Asks of other agents", "outcome"),
    ("responses", "Responses of /v1/responses, in_progress: nobody waited for its end", "status"),
    ("attachments", "Files that came with messages", "kind"),
    ("file_bytes", "Bytes of files that moved, up or down", "direction"),
    ("files_refused", "Uploads and downloads that were refused", "code"),
    ("connections_cut", "Connections that the host ended", "reason"),
    ("webhook_deliveries", "Tries to tell webhooks what happened", "outcome"),
)
"""The counters: name, meaning, labels."""


class MetricsApi(Api):
    """Renders the host's counters and the store's figures."""

    def __init__(self, counts: Metrics, store: Store, runs: RunService) -> None:
        self._counts = counts
        self._store = store
        self._runs = runs

    @operation("GET", "/metrics", content="text/plain")
    async def get(self, request: Request) -> Response:
        """The counters, for Prometheus.

        Those of a store that doesn't answer are left out.
        """
        stored: Stored | None = None
        with suppress(Unavailable):
            counts, tasks = await self._store.counts(), await self._store.tasks.metrics(now_ms())
            waiting = await self._store.approvals.waiting(now_ms())
            by_status, told = await self._store.principals.by_status(), await self._store.webhooks.figures()
            busiest = await self._store.usage.busiest(now_ms())
            stored = counts, tasks, by_status, waiting, told, busiest
        # The library takes 40 ms to import, so it is loaded by the first who asks, off the event loop.
        text = await anyio.to_thread.run_sync(self._render, stored)
        return Response(text, headers={"Content-Type": CONTENT_TYPE})

    def _render(self, stored: Stored | None) -> bytes:
        from prometheus_client import generate_latest
        from prometheus_client.core import GaugeMetricFamily
        from prometheus_client.registry import Collector

        gauges = (
            GaugeMetricFamily(f"picoclaw_{name}", text, value) for name, text, value in self._gauges(stored)
        )
        principals = GaugeMetricFamily("picoclaw_principals", "Principals", labels=["status"])
        for status, number in (stored[2] if stored else {}).items():
            principals.add_metric([status], number)
        # A label for each principal would have no bound: these are of the twenty with most runs.
        of_day = [
            GaugeMetricFamily(
                f"picoclaw_principal_{what}_today", f"{what} of today (UTC)", labels=["principal"]
            )
            for what in ("runs", "tokens")
        ]
        for principal_id, *figures in stored[5] if stored else ():
            for family, figure in zip(of_day, figures, strict=True):
                family.add_metric([principal_id], figure)
        families = [*self._counters(), *self._durations(), *gauges, principals, *of_day]

        class Figures(Collector):
            def collect(self) -> Iterable[Metric]:
                return families

        return generate_latest(Figures())

    def _counters(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily

        for name, text, *labels in COUNTED:
            family = CounterMetricFamily(f"picoclaw_{name}", text, labels=labels)
            for value, number in getattr(self._counts, name).items():
                family.add_metric([value] if isinstance(value, str) else value, number)
            yield family

    def _durations(self) -> Iterator[Metric]:
        from prometheus_client.core import HistogramMetricFamily

        for name, text, durations in (
            ("http_request", "Time to answer a request", self._counts.request_seconds),
            ("run", "Time of a run", self._counts.run_seconds),
        ):
            yield HistogramMetricFamily(
                f"picoclaw_{name}_seconds", text, buckets=durations.buckets(), sum_value=durations.total
            )

    def _gauges(self, stored: Stored | None) -> Sequence[tuple[str, str, float]]:
        own = (
            ("connections", "Open connections", self._counts.connections),
            ("file_streams", "Files that move in or out", self._counts.file_streams),
            ("active_runs", "Runs in flight on this host", self._runs.active_count),
            ("waiting_runs", "Requests that wait for a place to run", self._runs.waiting_count),
            ("store_durable", "Whether the store can be written", int(self._store.volume_ok())),
        )
        if stored is None:
            return own
        counts, tasks, _, waiting, told, _ = stored
        oldest_ms = 0 if told.oldest is None else max(now_ms() - told.oldest, 0)
        return (
            *own,
            ("conversations", "Conversations in the store", counts.conversations),
            ("tasks", "Scheduled tasks in the store", counts.tasks),
            ("tasks_due", "Tasks that are due now", tasks.due),
            ("tasks_running", "Slots that are being run", tasks.running),
            ("tasks_overdue_seconds", "How late the oldest due task is", tasks.overdue_seconds),
            ("approvals_open", "Requests that wait for people", waiting.requests),
            ("approvals_oldest_seconds", "How long the oldest of them waits", waiting.oldest_ms / 1000),
            ("webhooks_disabled", "Webhooks that are switched off", told.disabled),
            ("webhook_deliveries_waiting", "Events that webhooks were not told yet", told.waiting),
            ("webhook_deliveries_held", "Events held since the store was restored or copied", told.held),
            ("webhook_deliveries_oldest_seconds", "How long the oldest of them waits", oldest_ms / 1000),
        )


MICRO: Final = 1_000_000
BY: Final = Parameter("by", "All conversations together, if not given", ("day", "conversation"))


class DayUsageShape(UsageShape):
    """What model calls used on one UTC day: in one conversation with its tasks, or (null) in all."""

    day: str
    conversation_id: str | None
    runs: int
    unsettled_tokens: int
    tokens: int
    dollars: float
    principal_id: NotRequired[str]


class UsagePageShape(PageShape):
    """A page of usage."""

    usage: list[DayUsageShape]


class UsageApi(Api):
    """The usage route."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @operation("GET", "/usage", scope="usage", parameters=(*PAGE, BY, OF_CONVERSATION, OF_PRINCIPAL))
    async def list(self, request: Request) -> UsagePageShape:
        """What model calls used, newest day first."""
        asked = page_of(request)
        by = BY.text(request)
        conversation_id = await asked_for(request, self._store)
        principal_id = caller_of(request).listed(request)
        book = self._store.usage
        if conversation_id is None and by != "conversation":
            page = await book.by_day(**asked, principal_id=principal_id)
        else:
            page = await book.by_conversation(
                conversation_id=conversation_id, **asked, principal_id=principal_id
            )
        shown: list[DayUsageShape] = list(map(day_view, page.items))
        await say_whose(request, self._store, shown)
        return {"usage": shown, "next_cursor": page.next_cursor}


def day_view(used: DayUsage) -> DayUsageShape:
    """Return one day's usage as it leaves the host."""
    spending = used.spending
    return view(
        DayUsageShape,
        used,
        **spending.usage.counts,
        unsettled_tokens=spending.unsettled_tokens,
        tokens=spending.amount.tokens,
        dollars=spending.microdollars / MICRO,
    )

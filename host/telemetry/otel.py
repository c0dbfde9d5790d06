"""Traces and metrics by OpenTelemetry, sent as OTLP over HTTP; imported only where an endpoint is set."""

from collections.abc import Mapping, Sequence, Set
from functools import partial
from io import BytesIO
from typing import Any, Final, cast

import anyio
import anyio.to_thread
import requests
from opentelemetry import context, trace
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.metrics import Meter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
from opentelemetry.trace import SpanKind, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from host.ports import Ask, ToolResult, Toolset
from host.telemetry import Converse, Telemetry
from host.telemetry.spans import ModelCalls, fail, span, traced_call, traced_run
from shared import logging as logs
from shared.clock import monotonic_ms
from shared.redact import Redactor
from shared.settings import Settings

SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)


class TracingMiddleware:
    """One span a request, of the HTTP conventions, child of the caller's (W3C ``traceparent``)."""

    def __init__(
        self, app: ASGIApp, tracer: Tracer, meter: Meter, *, probes: Set[str], methods: Set[str]
    ) -> None:
        self._app = app
        self._probes = probes
        self._methods = methods
        self._tracer = tracer
        self._propagator = TraceContextTextMapPropagator()
        self._duration = meter.create_histogram(
            "http.server.request.duration", unit="s", explicit_bucket_boundaries_advisory=SECONDS
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in self._probes:
            await self._app(scope, receive, send)
            return
        status = 0

        async def observe(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        started = monotonic_ms()
        carrier = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        token = context.attach(self._propagator.extract(carrier))
        # What callers invent doesn't become a label.
        method = scope["method"] if scope["method"] in self._methods else "_OTHER"
        attributes = {"http.request.method": method, "url.path": scope["path"], "url.scheme": scope["scheme"]}
        try:
            with span(self._tracer, method, SpanKind.SERVER, attributes) as request:
                await self._app(scope, receive, observe)
                route = getattr(scope.get("route"), "path", "")
                if route:
                    request.update_name(f"{method} {route}")
                    request.set_attribute("http.route", route)
                request.set_attribute("http.response.status_code", status)
                if status >= 500:
                    fail(request, str(status))
        finally:
            context.detach(token)
            labels = {"http.request.method": method, "http.response.status_code": status}
            self._duration.record((monotonic_ms() - started) / 1000, labels)


SEND_WITHIN_S: Final = 5.0
"""One export, and what is left at the end, may take this long."""
LARGEST_ANSWER: Final = 64 * 1024
"""Bytes of a collector's answer that are read, packed as they come."""


def bounded_session() -> requests.Session:
    """Return a session that reads the beginning of an answer alone, and unpacks none of it."""
    session = requests.Session()
    session.headers["Accept-Encoding"] = "identity"
    session.hooks["response"].append(_cut)
    return session


def _cut(response: requests.Response, **_: Any) -> None:
    with response.raw as body:
        response.raw = BytesIO(body.read(LARGEST_ANSWER, decode_content=False))


class RedactedSpans(OTLPSpanExporter):
    """Sends spans without secrets, names too; the work is done on the exporter's own thread."""

    def __init__(self, redactor: Redactor, endpoint: str, headers: dict[str, str]) -> None:
        super().__init__(endpoint, headers=headers, timeout=SEND_WITHIN_S, session=bounded_session())
        self._redactor = redactor

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """See ``SpanExporter.export``."""
        return super().export([self._clean(span) for span in spans])

    def _clean(self, span: ReadableSpan) -> ReadableSpan:
        return ReadableSpan(
            self._redactor.text(span.name),
            context=span.context,
            parent=span.parent,
            resource=span.resource,
            attributes=self._redactor.value(dict(span.attributes or {})),
            kind=span.kind,
            instrumentation_scope=span.instrumentation_scope,
            status=span.status,
            start_time=span.start_time,
            end_time=span.end_time,
        )


class OpenTelemetry(Telemetry):
    """Implements ``Telemetry`` with spans and histograms in the GenAI conventions."""

    def __init__(self, settings: Settings, redactor: Redactor) -> None:
        telemetry = settings.telemetry
        base = (telemetry.endpoint or "").rstrip("/")
        headers = telemetry.header_values()
        resource = Resource.create(
            {"service.name": telemetry.service_name, "service.version": settings.version}
        )
        spans = RedactedSpans(redactor, f"{base}/v1/traces", headers)
        points = OTLPMetricExporter(
            f"{base}/v1/metrics", headers=headers, timeout=SEND_WITHIN_S, session=bounded_session()
        )
        self._traces = TracerProvider(
            resource=resource, sampler=ParentBasedTraceIdRatio(telemetry.sample), shutdown_on_exit=False
        )
        self._traces.add_span_processor(BatchSpanProcessor(spans))
        self._metrics = MeterProvider(
            [PeriodicExportingMetricReader(points)], resource=resource, shutdown_on_exit=False
        )
        self._tracer = self._traces.get_tracer("picoclaw", settings.version)
        self._meter = self._metrics.get_meter("picoclaw", settings.version)
        self._agent_name = settings.assistant_name
        self._content = redactor if telemetry.capture_content else None
        self._model_calls = ModelCalls(self._tracer, self._meter, redactor, content=telemetry.capture_content)
        logs.add_context(_in_logs)

    def app(self, app: ASGIApp, *, probes: Set[str], methods: Set[str]) -> ASGIApp:
        """See ``Telemetry.app``."""
        return TracingMiddleware(app, self._tracer, self._meter, probes=probes, methods=methods)

    def run(self, converse: Converse) -> Converse:
        """See ``Telemetry.run``."""
        return cast(Converse, partial(traced_run, self._tracer, self._agent_name, converse))

    def ask(self, ask: Ask) -> Ask:
        """See ``Telemetry.ask``."""
        return partial(self._model_calls.ask, ask)

    async def call(self, toolset: Toolset, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        """See ``Telemetry.call``."""
        return await traced_call(self._tracer, self._content, toolset, name, arguments)

    async def aclose(self) -> None:
        """Send what is left, as far as that is possible in time."""
        logs.remove_context(_in_logs)
        with anyio.CancelScope(shield=True):
            for shutdown in (
                partial(self._traces.force_flush, int(SEND_WITHIN_S * 1000)),
                self._traces.shutdown,
                partial(self._metrics.shutdown, SEND_WITHIN_S * 1000),
            ):
                await anyio.to_thread.run_sync(shutdown)


def _in_logs() -> dict[str, str]:
    """Return the ids that join a log line to its trace."""
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return {}
    return {
        "trace_id": trace.format_trace_id(context.trace_id),
        "span_id": trace.format_span_id(context.span_id),
    }

"""One span a request, of the HTTP conventions, child of the caller's (W3C ``traceparent``)."""

from __future__ import annotations

from collections.abc import Set
from typing import Final

from opentelemetry import context
from opentelemetry.metrics import Meter
from opentelemetry.trace import SpanKind, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from host.telemetry.spans import fail, span
from shared.clock import monotonic_ms

SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)


class TracingMiddleware:
    """Opens the span that everything of a request belongs to."""

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

"""What the host tells OpenTelemetry about itself: nothing, unless an endpoint is set (docs/telemetry.md)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from host.telemetry.off import OFF, Telemetry
from shared.errors import Misconfigured
from shared.redact import Redactor
from shared.settings import Settings

__all__ = ["OFF", "Telemetry", "open_telemetry"]


@asynccontextmanager
async def open_telemetry(settings: Settings, redactor: Redactor) -> AsyncIterator[Telemetry]:
    """Yield what tells about this host; what is left to send is sent at the end. Raises Misconfigured."""
    if settings.telemetry.endpoint is None:
        yield OFF
        return
    try:
        from host.telemetry.otel import OpenTelemetry
    except ImportError as error:
        raise Misconfigured(
            "OTEL_EXPORTER_OTLP_ENDPOINT is set, but OpenTelemetry is not installed: "
            "pip install 'picoclaw[otel]'"
        ) from error
    telemetry = OpenTelemetry(settings, redactor)
    try:
        yield telemetry
    finally:
        await telemetry.aclose()

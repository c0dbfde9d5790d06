"""What the host tells OpenTelemetry about itself: nothing, unless an endpoint is set (docs/telemetry.md)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from shared.errors import Misconfigured

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from host.ports import ModelPort, Toolset
    from host.runs.run import Agent
    from shared.redact import Redactor
    from shared.settings import Settings


class Telemetry:
    """Wraps what is worth telling about. This one tells nothing: everything stays as it is."""

    def agent(self, agent: Agent) -> Agent:
        """Return the agent; its runs are told."""
        return agent

    def model(self, model: ModelPort) -> ModelPort:
        """Return the model; its replies are told."""
        return model

    def toolset(self, toolset: Toolset) -> Toolset:
        """Return the toolset; its calls are told."""
        return toolset

    def app(self, app: ASGIApp) -> ASGIApp:
        """Return the application; its requests are told."""
        return app


OFF = Telemetry()


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

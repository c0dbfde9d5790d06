"""What stands around all that is worth telling about; it tells nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from host.ports import Ask, ToolResult, Toolset
    from shared.values import Lease, Usage


class Telemetry:
    """Tells nothing. ``host.telemetry.otel`` has one that tells OpenTelemetry."""

    def app(self, app: ASGIApp, *, probes: Set[str], methods: Set[str]) -> ASGIApp:
        """Return the application; its requests are told, but for those of the ``probes``' paths.

        A method that is none of ``methods`` is not told by its name.
        """
        return app

    @contextmanager
    def run(self, lease: Lease, *, scheduled: bool) -> Iterator[Callable[[str, Usage], None]]:
        """Tell of the run that the block is. What is yielded takes the model that answered, and the usage."""
        yield lambda model, usage: None

    def ask(self, ask: Ask) -> Ask:
        """Return the way to a model; its replies are told."""
        return ask

    async def call(self, toolset: Toolset, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        """Call a tool, and tell of it."""
        return await toolset.call(name, arguments)


OFF = Telemetry()
